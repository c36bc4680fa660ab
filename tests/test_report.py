"""The report of a run's folder: complete, self-contained, safe, and of use while the run goes on."""

import html.parser
import json
import math
import re
import xml.dom.minidom

import pytest
from PIL import Image as pil

from cpgr import report
from cpgr.drawing import STYLES, Heat, Mark, Panel, draw, side_by_side
from cpgr.errors import CpgrError
from cpgr.labels import Label, LabelTable
from cpgr.report.charts import Series, line_chart
from cpgr.report.text import interval

NASTY = '<script>alert("x")</script> & "the left" <img src=x onerror=y>'
PAIRING = {"count": 40, "images": 8, "pairing": 0.6, "ceiling": 0.95} | {
    name: {"hit_rate": 0.4, "difference": 0.2, "low": 0.05, "high": 0.35} for name in ("largest", "best_scored", "named_class", "random")
}
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Tags in balance, and every address that the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def entry(role, number, *, chosen=True, path="picture.png"):
    """One expression as gallery.json has it."""
    made = {
        "role": role, "split": "train" if role == "training" else "val", "expression_id": f"{role}{number}", "expression": NASTY,
        "image": {"id": "7", "path": path, "width": 64, "height": 48}, "true_box": [4.0, 4.0, 30.0, 30.0],
        "prediction": {"box": [5.0, 5.0, 28.0, 30.0], "score": 0.8, "iou": 0.8}, "iou": 0.8,
        "attention": {"grid": 4, "size": 64, "mode": "letterbox", "values": [0.0625] * 16},
    }  # fmt: skip
    if role == "training":
        made |= {
            "proposals": [{"region_id": 0, "box": [4.0, 4.0, 29.0, 30.0], "words": "left dog", "score": 0.9}],
            "chosen": {"box": [4.0, 4.0, 29.0, 30.0], "region_id": 0, "weight": 1.0} if chosen else None,
            "reason": "" if chosen else "pairing: the scores disagree", "iou": 0.8 if chosen else None,
            "pairs": [{"region_id": 0, "scores": {"posterior": 0.9, "text": None}}],
            "labels": [{"expression": NASTY, "kind": "generated", "region_id": 0, "kept": False, "reason": "too far", "scores": {"itm": 0.1}}],
        }  # fmt: skip
    return made


def write_cycle(root, number, finished=True):
    """A cycle's folder with what the report reads."""
    folder = root / f"cycle-{number}"
    for stage, losses in (("generation", {"itc": [2.0, 1.0], "loss": [4.0, math.nan]}), ("grounding", {"loss": [3.0, 2.0, 1.0]})):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "history.json").write_text(json.dumps({"every": 10, "losses": losses, "validation": [[20, 0.5], [40, 0.6]]}))
    row = Label("7", "a.jpg", 64, 48, [4, 4, 29, 30], expression="the dog", kind="generated")
    pair = Label("7", "a.jpg", 64, 48, [4, 4, 29, 30], expression="the dog", expression_id="1")
    rows = [row, row.drop("filtering: attention lies on another region"), pair, pair.drop("pairing: region 3 fits better")]
    LabelTable([*rows, pair.drop("pairing: the scores disagree")]).save(folder / "refined.parquet")
    for name in ("proposals", "basic"):
        LabelTable([row]).save(folder / f"{name}.parquet")
    if finished:
        entries = [entry("training", 0), entry("training", 1, chosen=False), entry("evaluation", 2)]
        (folder / "gallery.json").write_text(json.dumps({"entries": entries}))
        labels = {"keep_rate": 0.5, "basic_precision": None, "filter_precision": 0.0, "pairing_hit_rate": 0.6 + number / 100, "proposal_recall": 0.95}
        val = {"acc@0.5": min(0.4 + number / 10, 1.0), "mean_iou": 0.5, "count": 240}
        metrics = {"val": val, "testA": {"acc@0.5": math.nan, "mean_iou": math.nan, "count": 0}, "labels": labels, "pairing": PAIRING, "skipped": {"it is empty": 2}}
        (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "my run"
    root.mkdir()
    (root / "config.yaml").write_text("seed: 3\ncycles: 2\ndata:\n  format: refer\n  dataset: <b>refcoco</b>\n")
    (root / "run.log").write_text("10:00:00 cycle 1 of 2\n")
    pil.new("RGB", (64, 48), (90, 120, 60)).save(root / "picture.png")
    return root


def test_pairing_stands_beside_simpler_choices(root):
    write_cycle(root, 1)
    words = " ".join(Page(report.write(root).read_text()).text)
    assert "pairing of 40 true expressions of 8 images" in words
    assert "+20.0 points" in words and "+5.0 points to +35.0 points" in words
    metrics = json.loads((root / "cycle-1" / "metrics.json").read_text())
    del metrics["pairing"]  # a run made before it was measured
    (root / "cycle-1" / "metrics.json").write_text(json.dumps(metrics))
    assert "simpler choices" not in " ".join(Page(report.write(root).read_text()).text)


def test_a_finished_run(root):
    for number in (1, 2):
        write_cycle(root, number)
    path = report.write(root)
    text = path.read_text()
    page = Page(text)
    words = " ".join(page.text)
    assert path == root / "report.html" and not list(root.glob(".report*"))
    assert "finished, 2 cycles" in words and "60.0 %" in words and "+10.0 points" in words
    assert "not measurable here" in words, "what cannot be measured is not shown as 0"
    assert "0.0 %" in words, "and a measured 0 is"
    assert "filtering: attention lies on another region" in words and "fits better" not in words
    assert "Scores of 1 regions" in words and "1 pseudo expressions, 0 kept" in words and "Dropped: pairing: the scores disagree" in words
    for section in ("results", "accuracy", "labels", "dropped-labels", "gallery", "losses", "skipped-records", "config", "log"):
        assert f'id="{section}"' in text and f"#{section}" in page.addresses


def test_it_loads_nothing_and_runs_nothing(root):
    write_cycle(root, 1)
    text = report.write(root).read_text()
    page = Page(text)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    assert "&lt;script&gt;" in text and "<script" not in text and "<b>refcoco" not in text
    assert "default-src 'none'" in text


def test_an_unfinished_run_says_what_it_is_at(root):
    write_cycle(root, 1)
    write_cycle(root, 2, finished=False)
    words = " ".join(Page(report.write(root).read_text()).text)
    assert "not finished: 1 of 2 cycles; cycle 2 is at: evaluation" in words
    for path in root.glob("cycle-*"):
        path.rename(root / f"old-{path.name}")
    words = " ".join(Page(report.write(root).read_text()).text)
    assert "not finished: 0 of 2 cycles" in words and "nothing is measured" in words


def test_damaged_files_and_missing_images_are_named(root):
    write_cycle(root, 1)
    (root / "cycle-1" / "grounding" / "history.json").write_text("{")
    (root / "cycle-1" / "refined.parquet").write_bytes(b"no parquet")
    (root / "picture.png").unlink()
    words = " ".join(Page(report.write(root).read_text()).text)
    assert "cycle-1/grounding/history.json cannot be read" in words and "cycle-1/refined.parquet cannot be read" in words
    assert "not there any more: picture.png" in words


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(CpgrError, match="holds no run"):
        report.write(tmp_path)
    (tmp_path / "config.yaml").write_text("- [")
    with pytest.raises(CpgrError, match="cannot be read"):
        report.write(tmp_path)


def test_photographs_are_reduced_and_many_cycles_stay_small(root):
    pil.effect_noise((800, 600), 90).convert("RGB").save(root / "picture.png")
    for number in range(1, 10):
        write_cycle(root, number)
    path = report.write(root)
    assert path.stat().st_size < 1_000_000
    assert len(re.findall(r'name="cycle"', path.read_text())) == 8


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, 0.5)], [(1, None), (2, 0.2), (3, math.nan), (4, 1e-9)], [(1, -3.0), (900, 4e6)]])
def test_charts_are_sound_svg_whatever_the_numbers(points):
    for whole in (True, False):
        svg = line_chart([Series("a <b>", points), Series("none", [(1, None)], 1)], title="t & u", whole_x=whole)
        document = xml.dom.minidom.parseString(svg)
        numbers = [float(v) for node in document.getElementsByTagName("text") for v in (node.getAttribute("x"), node.getAttribute("y"))]
        assert all(-1 <= number <= 521 for number in numbers)
    assert line_chart([Series("none", [(1, None)])], title="t") == ""


def test_the_interval_is_wilsons():
    low, high = interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert interval(1.0, 10)[1] == 1.0 and interval(0.0, 10)[0] == 0.0


def test_drawing_puts_the_box_and_the_attention_where_they_belong():
    heat = Heat([0.0] * 12 + [0.0, 0.0, 0.0, 1.0], 4, 128)
    assert heat.place(200, 100) == (0.0, -50.0, 200.0, 200.0), "a letterbox's padding lies outside the picture"
    assert Heat([1.0], 1, 64, "squash").place(200, 100) == (0.0, 0.0, 200.0, 100.0)
    plain = pil.new("RGB", (256, 256), (0, 0, 0))
    picture = draw(plain, Panel([Mark([64, 64, 128, 128])], heat), least=256)
    gold = tuple(int(STYLES["chosen"].color[i : i + 2], 16) for i in (1, 3, 5))
    assert picture.getpixel((96, 64)) == gold and picture.getpixel((96, 96)) == (0, 0, 0)
    assert picture.getpixel((32, 32)) == (0, 0, 0) and sum(picture.getpixel((240, 240))) > 200
    captioned = draw(plain, Panel(caption="a long expression that needs more than one line to be written under a picture"))
    assert captioned.width == 512 and captioned.height > 512 + 40
    assert side_by_side([plain] * 4).size == (3 * 264 - 8, 2 * 264 - 8)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_boxes_of_any_shape(style):
    for box in ([0, 0, 0, 0], [-5, -5, 300, 300], [10, 10, 10.2, 90]):
        draw(pil.new("RGB", (100, 100)), Panel([Mark(box, style)]), least=100)
