"""The other formats: each on a tiny file in its true form, on real files, and with bad records."""

import json

import numpy as np
import pytest
import torch

from cpgr.data.readers import FORMATS, DataConfig, read_split
from cpgr.data.readers.collect import clean_text
from cpgr.data.records import Problems
from cpgr.errors import CpgrError, DataError

BOX, XYWH = [10.0, 10.0, 30.0, 40.0], [10.0, 10.0, 20.0, 30.0]
ATTRIBUTES = [("r1", ["man"]), ("r2", ["none"])]


def read(root, format, split="train", on_bad="error", **changes):
    problems = Problems(on_bad)
    return *read_split(DataConfig(format=format, root=str(root), **changes), split, problems), problems


def rows(split):
    return [(e.expression_id, e.image_id, e.text) for e in split.expressions]


def save_torch(root, name, items, **options):
    root.mkdir(parents=True, exist_ok=True)
    torch.save(items, root / name, **options)


TUPLES = {
    "unc_train.pth": ("a.jpg", "5.pth", XYWH, "the man", ATTRIBUTES),
    "gref_umd_train.pth": ("a.jpg", "5.pth", XYWH, "the man", ATTRIBUTES),
    "referit_train.pth": ("a.jpg", "5.pth", BOX, "the man", ATTRIBUTES),
    "flickr_train.pth": ("a.jpg", np.array(BOX, "f4"), "the man"),
    "unc+_train.pth": ["a.jpg", BOX, "the man"],
    "gref_train.pth": ["a.jpg", torch.tensor(BOX), "the man", 0.7],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", TUPLES)
def test_transvg_tuples(tmp_path, pictures, name, zipped):
    pictures(tmp_path / "images", "a.jpg")
    save_torch(tmp_path, name, [TUPLES[name]] * 2, _use_new_zipfile_serialization=zipped)
    stem = name.removesuffix(".pth")
    for dataset in ("scenes", stem.removesuffix("_train")):
        split, truth, _ = read(tmp_path, "transvg", dataset=dataset)
        assert rows(split) == [(f"{stem}:0", "a.jpg", "the man"), (f"{stem}:1", "a.jpg", "the man")]
        assert truth.boxes[f"{stem}:0"] == BOX


def test_transvg_choice_of_file_and_box_order(tmp_path, pictures):
    pictures(tmp_path / "images", "a.jpg")
    save_torch(tmp_path, "mine_train.pth", [TUPLES["unc_train.pth"]])
    with pytest.raises(CpgrError, match="box order of the data set 'mine' is not known.*--data.box_order xyxy or xywh"):
        read(tmp_path, "transvg")
    assert read(tmp_path, "transvg", box_order="xywh")[1].boxes["mine_train:0"] == BOX
    save_torch(tmp_path, "unc_train.pth", [TUPLES["unc_train.pth"]])
    with pytest.raises(CpgrError, match="it has mine_train.pth, unc_train.pth"):
        read(tmp_path, "transvg")
    assert read(tmp_path, "transvg", dataset="refcoco")[1].boxes == {"unc_train:0": BOX}
    with pytest.raises(CpgrError, match="has no flickr_train.pth"):
        read(tmp_path, "transvg", dataset="flickr30k")
    with pytest.raises(CpgrError, match="has no unc_val.pth"):
        read(tmp_path, "transvg", "val", dataset="unc")


def test_transvg_bad_elements(tmp_path, pictures):
    pictures(tmp_path / "images", "a.jpg")
    good = ("a.jpg", BOX, "the man")
    bad = [("a.jpg",), "x", (7, BOX, "t"), ("a.jpg", BOX, ""), ("../a.jpg", BOX, "t"), ("a.jpg", [1, 2], "bad box")]
    save_torch(tmp_path, "flickr_train.pth", [good, *bad])
    with pytest.raises(DataError, match="flickr_train.pth: element 1: is no tuple"):
        read(tmp_path, "transvg")
    split, truth, problems = read(tmp_path, "transvg", on_bad="skip")
    assert rows(split) == [("flickr_train:0", "a.jpg", "the man"), ("flickr_train:6", "a.jpg", "bad box")]
    assert list(truth.boxes) == ["flickr_train:0"] and len(problems.skipped) == 6


def refclip_item(**changes):
    return {"iid": 7, "bbox": XYWH, "cat_id": 0, "refs": ["the man", "a man"], "mask_id": 3, **changes}


@pytest.mark.parametrize("place", ["refcoco.json", "anns/refcoco.json", "anns/refcoco/refcoco.json"])
def test_refclip(tmp_path, pictures, place):
    pictures(tmp_path / "images" / "train2014", "COCO_train2014_000000000007.jpg")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(json.dumps({"train": [refclip_item()], "val": [refclip_item(refs=["x"])]}))
    split, truth, _ = read(tmp_path, "refclip", dataset="refcoco")
    assert rows(split) == [("train:0:0", "7", "the man"), ("train:0:1", "7", "a man")] and truth.boxes["train:0:1"] == BOX
    assert rows(read(tmp_path, "refclip", "val", dataset="refcoco")[0]) == [("val:0:0", "7", "x")]
    with pytest.raises(CpgrError, match=r"no split 'test'; its splits are train \(1\), val \(1\)"):
        read(tmp_path, "refclip", "test", dataset="refcoco")
    with pytest.raises(CpgrError, match="has no data set 'refcocog'"):
        read(tmp_path, "refclip", dataset="refcocog")


def test_refclip_numbered_images_and_bad_items(tmp_path, pictures):
    pictures(tmp_path / "images" / "refclef", "7.jpg")
    items = [refclip_item(), refclip_item(refs="x"), refclip_item(iid=None), 5, refclip_item(bbox=None), refclip_item(iid="../7")]
    (tmp_path / "refclef.json").write_text(json.dumps({"train": items}))
    with pytest.raises(DataError, match="refclef.json: train item 1: is no item"):
        read(tmp_path, "refclip", dataset="refclef")
    split, truth, problems = read(tmp_path, "refclip", dataset="refclef", on_bad="skip")
    assert len(split.expressions) == 4 and len(truth.boxes) == 2 and len(problems.skipped) == 5


def test_seqtr(tmp_path, pictures):
    pictures(tmp_path / "images" / "mscoco" / "images" / "train2014", "COCO_train2014_000000000007.jpg")
    folder = tmp_path / "annotations" / "refcocoplus-unc"
    folder.mkdir(parents=True)
    polygon = [[10.0, 10, 30, 10, 30, 40, 10, 40]]
    entry = {"image_id": 7, "width": 64, "height": 48, "bbox": XYWH, "expressions": ["the man", "a man"], "mask": polygon}
    rle = {"size": [48, 64], "counts": [0, 48 * 64]}
    (folder / "instances.json").write_text(json.dumps({"train": [entry, {**entry, "mask": rle, "expressions": ["x"]}, {**entry, "width": 60}]}))
    with pytest.raises(DataError, match="instances.json: train entry 2: the annotations are for an image of another size"):
        read(tmp_path, "seqtr", dataset="refcoco+:unc")
    split, truth, problems = read(tmp_path, "seqtr", dataset="refcoco+:unc", on_bad="skip")
    assert rows(split)[:3] == [("train:0:0", "7", "the man"), ("train:0:1", "7", "a man"), ("train:1:0", "7", "x")]
    assert len(split.expressions) == 5 and len(truth.boxes) == 3 and truth.masks["train:0:0"] == polygon and len(problems.skipped) == 1
    assert isinstance(truth.masks["train:1:0"]["counts"], str)


SENTENCES = """[/EN#11/people A small girl] in [/EN#12/clothing/bodyparts a green dress] near [/EN#0/notvisual it] .
[/EN#13/scene A street] with [/EN#11/people a child] .
"""
XML = """<annotation><filename>5.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>11</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
<object><name>11</name><name>12</name><bndbox><xmin>15</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>13</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""


@pytest.fixture
def entities(tmp_path, pictures):
    pictures(tmp_path / "flickr30k-images", "5.jpg")
    for folder, name, text in (("Sentences", "5.txt", SENTENCES), ("Annotations", "5.xml", XML), (".", "train.txt", "5\n")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def test_flickr30k(entities):
    split, truth, _ = read(entities, "flickr30k")
    assert rows(split) == [("5:0:0", "5", "A small girl"), ("5:0:1", "5", "a green dress"), ("5:1:0", "5", "A street"), ("5:1:1", "5", "a child")]
    assert truth.boxes == {"5:0:0": [10, 5, 30, 30], "5:0:1": [14, 5, 30, 20], "5:1:1": [10, 5, 30, 30]}
    with pytest.raises(CpgrError, match="no split 'val'.*it has train"):
        read(entities, "flickr30k", "val")


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotation>&x;</annotation>'


@pytest.mark.parametrize("xml", [BOMB, "<annotation>", "", None, XML.replace("11</xmin>", "nan</xmin>"), XML.replace("<xmin>11", "<xmin>left"), XML.replace("64", "65")])
def test_flickr30k_bad_annotations_leave_the_expressions(entities, xml):
    whole = read(entities, "flickr30k")[0]
    file = entities / "Annotations" / "5.xml"
    file.unlink() if xml is None else file.write_text(xml)
    with pytest.raises(DataError, match="image 5, entity 11"):
        read(entities, "flickr30k")
    split, truth, problems = read(entities, "flickr30k", on_bad="skip")
    assert split == whole and "5:0:0" not in truth.boxes and problems.skipped


def test_flickr30k_bad_sentences(entities):
    (entities / "train.txt").write_text("5\n../5\n6\n")
    (entities / "Sentences" / "5.txt").write_text("[/EN#11/people A girl] in [/EN#12/clothing a dress\n[/EN#" + "9" * 5000 + "/people A man]\n[/EN#11/people  ]\n")
    with pytest.raises(DataError, match="Sentences/5.txt: sentence 0: has a phrase that is not"):
        read(entities, "flickr30k")
    split, _, problems = read(entities, "flickr30k", on_bad="skip")
    assert rows(split) == [("5:0:0", "5", "A girl")] and len(problems.skipped) >= 4


LINES = [
    {"image": "a.jpg", "expression": "the man", "box": BOX, "id": "x1"},
    {"image": "sub/b.jpg", "expression": "a dog"},
    {"image": "a.jpg", "texts": [{"text": "one"}, {"text": "two"}], "box_xyxy": BOX},
]


@pytest.mark.parametrize("images", ["images", "."])
def test_folder(tmp_path, pictures, images):
    pictures(tmp_path / images, "a.jpg")
    pictures(tmp_path / images / "sub", "b.jpg")
    (tmp_path / "train.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, LINES)) + "\n", encoding="utf-8")
    split, truth, _ = read(tmp_path, "folder")
    assert rows(split) == [("x1", "a.jpg", "the man"), ("train:3", "sub/b.jpg", "a dog"), ("train:5", "a.jpg", "one"), ("train:5:1", "a.jpg", "two")]
    assert truth.boxes == {"x1": BOX, "train:5": BOX, "train:5:1": BOX}
    with pytest.raises(CpgrError, match="no val.jsonl.*it has train.jsonl"):
        read(tmp_path, "folder", "val")


def test_folder_bad_lines(tmp_path, pictures):
    pictures(tmp_path / "images", "a.jpg")
    lines = ['{"image": "a.jpg", "expression": "ok"}', "{", '["a.jpg"]', '{"image": 7}', '{"image": "a.jpg"}', '{"image": "../a.jpg", "expression": "x"}',
             '{"image": "a.jpg", "expression": "bad box", "box": [1, NaN, 2, 3]}', "[" * 100_000]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="train.jsonl: line 2: is no JSON object"):
        read(tmp_path, "folder")
    split, truth, problems = read(tmp_path, "folder", on_bad="skip")
    assert [e.text for e in split.expressions] == ["ok", "bad box"] and truth.boxes == {} and len(problems.skipped) == 7


def test_one_file_with_all_splits(tmp_path, pictures):
    pictures(tmp_path / "images", "a.jpg")
    refs = [{"split": "train", "bbox": XYWH, "sentences": ["x", "y"]}, {"split": "val", "bbox": None, "sentences": ["z"]}, {"split": "train"}]
    content = {"images": [{"image_id": 4, "file_name": "a.jpg", "width": 64, "height": 48, "refs": refs}, {"image_id": 5}]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    split, truth, problems = read(tmp_path, "folder", on_bad="skip")
    assert rows(split) == [("4:0:0", "4", "x"), ("4:0:1", "4", "y")] and truth.boxes["4:0:1"] == BOX and len(problems.skipped) == 2
    assert read(tmp_path, "folder", "val", on_bad="skip")[1].boxes == {}
    with pytest.raises(CpgrError, match=r"no split 'test'; its splits are train \(1\), val \(1\)"):
        read(tmp_path, "folder", "test", on_bad="skip")


def test_every_format_needs_its_folder(tmp_path):
    for name in FORMATS:
        with pytest.raises(CpgrError, match="give --data.root"):
            read("", name)
        with pytest.raises(CpgrError, match="is no folder"):
            read(tmp_path / "none", name)
        with pytest.raises(CpgrError, match=str(tmp_path)):
            read(tmp_path, name)


def test_config_explains_every_field():
    from dataclasses import fields

    for field in fields(DataConfig):
        assert f"        {field.name}: " in DataConfig.__doc__


def test_the_built_in_world(tmp_path):
    scenes = pytest.importorskip("cpgr.data.scenes.write")
    scenes.write_scenes(tmp_path, seed=3, images=4, pixels=64, held_out=2)
    split, truth, problems = read(tmp_path, "scenes")
    assert len(split.images) == 4 and problems.skipped == []
    assert len(truth.boxes) == len(truth.masks) == len(truth.object_ids) == len(split.expressions) > 4
    for expression in split.expressions:
        found = truth.objects[expression.image_id][truth.object_ids[expression.expression_id]]
        assert set(found["attributes"]) == {"colour", "size", "pattern"} and found["category"]
    assert set(read(tmp_path, "refer", "val")[0].images).isdisjoint(split.images)


def test_real_flickr30k(real):
    root = real("real/flickr30k")
    config = DataConfig(format="transvg", root=str(root), train_split="val", eval_split="test")
    for name, count in (("val", 345), ("test", 327)):
        split, truth = read_split(config, name, Problems())
        assert (len(split.images), len(split.expressions), len(truth.boxes)) == (24, count, count)


def test_real_pairs_have_no_boxes(real):
    for name, counts in (("val", (216, 2806)), ("test", (247, 3349))):
        split, truth, _ = read(real("pairs"), "folder", name, check_images="header")
        assert (len(split.images), len(split.expressions), len(truth.boxes)) == (*counts, 0)


REAL_LISTS = {"unc__unc_testA": (750, 5657), "gref_umd__gref_umd_val": (1300, 4896), "referit__referit_val": (1000, 5842), "flickr__flickr_test": (999, 14481)}


@pytest.mark.parametrize("name", REAL_LISTS)
def test_real_lists_agree_with_their_sources(real, tmp_path, monkeypatch, name):
    """Without their images: sizes are taken as unbounded, so every box must be read as it stands."""
    from cpgr.data.readers import collect

    monkeypatch.setattr(collect, "check_image", lambda path, **_: (10_000, 10_000))
    (tmp_path / name.partition("__")[2]).with_suffix(".pth").symlink_to(real("text/transvg_pth") / f"{name}.pth")
    dataset, _, split_name = name.partition("__")[2].rpartition("_")
    split, truth, _ = read(tmp_path, "transvg", split_name, dataset=dataset, images=str(tmp_path))
    assert (len(split.images), len(split.expressions)) == REAL_LISTS[name] and len(truth.boxes) == len(split.expressions)
    source = {"unc": "refcoco_unc_testA", "gref_umd": "refcocog_umd_val", "referit": "referitgame_berkeley_val", "flickr": "flickr30k_entities_standard_test"}
    wanted = set()
    for line in (real("text") / f"{source[dataset]}.jsonl").read_text().splitlines():
        ref = json.loads(line)
        x, y, w, h = ref["bbox"]
        wanted |= {(ref["file_name"], text, *(round(v, 1) for v in (x, y, x + w, y + h))) for text in map(clean_text, ref["sentences"])}
    found = {(e.image_id, e.text, *(round(v, 1) for v in truth.boxes[e.expression_id])) for e in split.expressions}
    assert found <= wanted


NOISE = [None, [], "x", {}, [0, 0, 0, 0], [float("nan")] * 4, [-9, -9, 2, 2], [500, 500, 9, 9], [30, 30, 10, 10], 10**400]


def write_transvg(root, box):
    save_torch(root, "referit_train.pth", [("a.jpg", "m", box(), "one", []), ("b.jpg", box(), "two"), ["a.jpg", box(), "three", 0.5]])


def write_refclip(root, box):
    items = [{"iid": i, "file_name": f"{n}.jpg", "bbox": box(), "cat_id": box(), "refs": [f"one {i}", f"two {i}"]} for i, n in enumerate("abab")]
    (root / "x.json").write_text(json.dumps({"train": items}))


def write_seqtr(root, box):
    sides = {"width": box(), "height": box()}
    entries = [{"image_id": i, "file_name": f"{n}.jpg", **sides, "bbox": box(), "mask": box(), "expressions": [f"one {i}"]} for i, n in enumerate("ab")]
    (root / "x.json").write_text(json.dumps({"train": entries}))


def write_folder(root, box):
    lines = [{"image": f"{n}.jpg", "expression": f"one {i}", "box": box(), "mask": box()} for i, n in enumerate("abab")]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("format", "write"), [("transvg", write_transvg), ("refclip", write_refclip), ("seqtr", write_seqtr), ("folder", write_folder)])
def test_training_regions_can_be_poison(tmp_path, pictures, format, write, seed):
    rng = np.random.default_rng(seed)
    pictures(tmp_path / "images", "a.jpg", "b.jpg")
    write(tmp_path, lambda: BOX)
    whole = read(tmp_path, format, on_bad="skip")[0]
    noise = [value for value in NOISE if format != "transvg" or value != 10**400]
    write(tmp_path, lambda: noise[rng.integers(len(noise))])
    assert read(tmp_path, format, on_bad="skip")[0] == whole
