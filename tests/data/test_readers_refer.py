"""REFER files: layout, choice of files and splits, regions, and every kind of bad record."""

import json
import math
import os
import shutil

import pytest

from cpgr.data.readers import DataConfig, read_split
from cpgr.data.records import Problems
from cpgr.errors import CpgrError, DataError


def read(world, split="train", on_bad="error", dataset="refcoco", **changes):
    problems = Problems(on_bad)
    config = DataConfig(format="refer", root=str(world.root), dataset=dataset, **changes)
    return *read_split(config, split, problems), problems


def test_records_in_file_order_and_truth_apart(refer_world):
    split, truth, problems = read(refer_world)
    assert [(e.expression_id, e.image_id, e.text) for e in split.expressions] == [
        ("0", "7", "red box"), ("1", "7", "left box"), ("2", "8", "blue box"), ("3", "7", "small box"),
    ]  # fmt: skip
    assert list(split.images) == ["7", "8"] and (split.images["7"].width, split.images["7"].height) == (64, 48)
    assert split.images["7"].path.is_file() and problems.skipped == []
    assert truth.boxes == {str(i): [10.0, 10.0, 30.0, 30.0] for i in range(4)}
    assert truth.masks["0"] == [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    assert truth.object_ids == {"0": 0, "1": 0, "2": 0, "3": 1}
    assert truth.objects["7"][1]["category"] == "box" and truth.objects["7"][1]["attributes"] == {"colour": "red"}


@pytest.mark.parametrize("folder", ["images/refcoco", "refcoco/images", "images/mscoco/images/train2014", "train2014", "images", "elsewhere"])
def test_image_folders(refer_world, folder):
    target = refer_world.root / folder
    here = refer_world.root / "images" / "train2014"
    target.mkdir(parents=True, exist_ok=True)
    for path in here.iterdir():
        shutil.move(path, target)
    here.rmdir()
    images = str(target) if folder == "elsewhere" else ""
    assert read(refer_world, images=images)[0].images["7"].path.parent == target
    shutil.rmtree(target)
    with pytest.raises(CpgrError, match="elsewhere: is no folder" if images else "images were not found.*train2014"):
        read(refer_world, images=images)


def test_choices_are_listed(refer_world):
    with pytest.raises(CpgrError, match="no REFER data set 'refcocog'; it has refcoco"):
        read(refer_world, dataset="refcocog")
    with pytest.raises(CpgrError, match=r"no split 'valid'; its splits are train \(3\), testA \(1\)"):
        read(refer_world, split="valid")
    shutil.copy(refer_world.folder / "refs(unc).p", refer_world.folder / "refs(google).p")
    with pytest.raises(CpgrError, match="several refs files; give --data.dataset as refcoco:google, refcoco:unc"):
        read(refer_world)
    assert len(read(refer_world, dataset="refcoco:unc")[0].expressions) == 4
    with pytest.raises(CpgrError, match=r"has no refs\(umd\).p"):
        read(refer_world, dataset="refcoco:umd")
    with pytest.raises(CpgrError, match="unknown data format 'xml'; the formats are scenes, refer"):
        read_split(DataConfig(format="xml"), "train", Problems())
    with pytest.raises(CpgrError, match="give --data.root"):
        read_split(DataConfig(), "train", Problems())


def test_test_splits(refer_world):
    assert len(read(refer_world, split="test")[0].expressions) == len(read(refer_world, split="testA")[0].expressions) == 2
    refer_world.refs[0]["split"] = "testAB"
    refer_world.save()
    assert [e.expression_id for e in read(refer_world, split="testA")[0].expressions] == ["0", "1", "4", "5"]
    assert [e.expression_id for e in read(refer_world, split="testB")[0].expressions] == ["0", "1"]


def test_limit_holds_for_training_only(refer_world):
    assert list(read(refer_world, limit=1)[0].images) == ["7"]
    assert [e.expression_id for e in read(refer_world, limit=1)[0].expressions] == ["0", "1", "3"]
    assert len(read(refer_world, limit=1, train_split="val")[0].images) == 2


def test_expressions_are_cleaned(refer_world):
    refer_world.refs[0]["sentences"][0]["sent"] = "  Cafe\u0301\tto\x00the\n left\ud800 "
    refer_world.save()
    assert read(refer_world)[0].expressions[0].text == "Café to the left"


def test_progress_sees_the_images(refer_world):
    seen = []

    def progress(items, what, total):
        for item in items:
            seen.append((what, total))
            yield item

    read_split(DataConfig(format="refer", root=str(refer_world.root), dataset="refcoco"), "train", Problems(), progress)
    assert seen == [("checking the images of train", 2)] * 2


def test_refclef_masks_are_merged(refer_world):
    from pycocotools import mask as coco

    halves = [coco.frPyObjects([[0.0, 0, 10, 0, 10, 10, 0, 10]], 48, 64)[0], coco.frPyObjects([[20.0, 20, 30, 20, 30, 30, 20, 30]], 48, 64)[0]]
    refer_world.annotations[0]["segmentation"] = [{"size": h["size"], "counts": h["counts"].decode()} for h in halves]
    refer_world.annotations[2]["segmentation"] = {"size": [48, 64], "counts": [100, 50, 64 * 48 - 150]}
    refer_world.annotations[1]["has_mask"] = False
    refer_world.save()
    _, truth, _ = read(refer_world)
    assert coco.area({**truth.masks["0"], "counts": truth.masks["0"]["counts"].encode()}) == 200
    assert coco.area({**truth.masks["2"], "counts": truth.masks["2"]["counts"].encode()}) == 50
    assert "3" not in truth.masks


def spoil_region(world, **fields):
    world.annotations[0].update(fields)


BAD_REGIONS = {
    "the box is missing": {"bbox": None},
    "the box is not four finite numbers": {"bbox": [1.0, math.nan, 5.0, 5.0]},
    "the box has no area": {"bbox": [5.0, 5.0, 0.0, 5.0]},
    "the box lies outside the image": {"bbox": [100.0, 5.0, 20.0, 5.0]},
    "the mask is not of the image's size": {"segmentation": {"size": [9, 9], "counts": "0"}},
    "the mask's RLE does not fill the image": {"segmentation": {"size": [48, 64], "counts": [5, 5]}},
    "the mask's RLE is damaged": {"segmentation": {"size": [48, 64], "counts": "\x01\x7f"}},
    "a polygon of the mask is not pairs of finite numbers": {"segmentation": [[1.0, 2.0, "x", 4.0, 5.0, 6.0]]},
    "its annotation is not in instances.json": {"id": 999},
}


@pytest.mark.parametrize("problem", BAD_REGIONS)
def test_a_bad_region_never_removes_its_expression(refer_world, problem):
    whole, truth, _ = read(refer_world)
    spoil_region(refer_world, **BAD_REGIONS[problem])
    refer_world.save()
    with pytest.raises(DataError, match=f"refs.unc..p: ref 0: {problem}"):
        read(refer_world)
    split, spoiled, problems = read(refer_world, on_bad="skip")
    assert split == whole
    assert problems.summary() == {problem: 1}
    if "mask" not in problem:
        assert set(truth.boxes) - set(spoiled.boxes) == {"0", "1"} and 0 not in spoiled.object_ids.values() or "2" in spoiled.object_ids


@pytest.mark.parametrize("box", [[1, 2, 3], "10 10 20 20", {"x": 1}, [True, 1, 5, 5], [1, 2, "3", 4], [[1], 2, 3, 4], [1e308, 1, 1e308, 5], [10**400, 1, 5, 5]])
def test_boxes_that_are_no_boxes(refer_world, box):
    spoil_region(refer_world, bbox=box)
    refer_world.save()
    with pytest.raises(DataError, match="ref 0: the box"):
        read(refer_world)


def test_boxes_partly_outside_are_clipped(refer_world):
    spoil_region(refer_world, bbox=[-1.5, 10.0, 67.0, 20.0])
    refer_world.save()
    assert read(refer_world)[1].boxes["0"] == [0.0, 10.0, 64.0, 30.0]
    spoil_region(refer_world, bbox=[-9.0, 10.0, 40.0, 20.0])
    refer_world.save()
    with pytest.raises(DataError, match="ref 0: the box reaches out of the image"):
        read(refer_world)
    _, truth, problems = read(refer_world, on_bad="skip")
    assert truth.boxes["0"] == [0.0, 10.0, 31.0, 30.0] and problems.summary() == {"the box reaches out of the image": 1}


def test_annotations_of_another_size(refer_world):
    refer_world.images[0]["width"] = 128
    refer_world.save()
    with pytest.raises(DataError, match="image of another size"):
        read(refer_world)
    split, truth, _ = read(refer_world, on_bad="skip")
    assert len(split.expressions) == 4 and set(truth.boxes) == {"2"}


@pytest.mark.parametrize("seed", range(4))
def test_training_regions_can_be_poison(refer_world, seed):
    import random

    rng = random.Random(seed)
    whole, _, _ = read(refer_world, on_bad="skip", limit=2)
    junk = [None, [], [0, 0, 0, 0], [math.nan] * 4, [math.inf, 1, 2, 3], "x", {}, [-5, -5, 3, 3], [1, 2, 10**9, 4], [10, 10, 5, 5]]
    for found in refer_world.annotations:
        found.update(bbox=rng.choice(junk), segmentation=rng.choice(junk), area=rng.choice(junk), category_id=rng.choice(junk), id=rng.choice([found["id"], 5, None]))
    for ref in refer_world.refs:
        ref.update(ann_id=rng.choice([5, None, "x"]), category_id=None)
    rng.shuffle(refer_world.annotations)
    refer_world.save()
    assert read(refer_world, on_bad="skip", limit=2)[0] == whole


BAD_TEXTS = {"the expression is empty": ["", " \t\x00 "], "the expression is not a text": [None, 7, ["x"]]}


@pytest.mark.parametrize(("problem", "text"), [(p, t) for p, texts in BAD_TEXTS.items() for t in texts])
def test_bad_expressions(refer_world, problem, text):
    refer_world.refs[1]["sentences"][0]["sent"] = text
    refer_world.save()
    with pytest.raises(DataError, match=f"ref 1, sentence 1: {problem}"):
        read(refer_world)
    split, truth, problems = read(refer_world, on_bad="skip")
    assert [e.expression_id for e in split.expressions] == ["0", "1", "3"] and list(split.images) == ["7"]
    assert set(truth.boxes) == {"0", "1", "3"} and problems.summary() == {problem: 1}


def test_an_id_used_twice(refer_world):
    refer_world.refs[2]["sentences"][0]["sent_id"] = 1
    refer_world.save()
    with pytest.raises(DataError, match="ref 2, sentence 1: the expression's id is used twice"):
        read(refer_world)
    assert [e.text for e in read(refer_world, on_bad="skip")[0].expressions] == ["red box", "left box", "blue box"]


def damage_image(kind, path, world):
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "too many pixels":
        from PIL import Image

        Image.new("1", (400, 300)).save(path, format="PNG")
    elif kind == "no image":
        path.write_text("x" * 500)
    elif kind == "link":
        outside = world.root.parent / "secret.jpg"
        os.replace(path, outside)
        path.symlink_to(outside)
    else:
        world.images[0]["file_name"] = kind
        world.save()


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "too many pixels", "no image", "link", "../x.jpg", "/etc/passwd", "a\0.jpg", None])
def test_bad_images_go_with_all_their_expressions(refer_world, kind):
    damage_image(kind, refer_world.root / "images" / "train2014" / "COCO_train2014_000000000007.jpg", refer_world)
    with pytest.raises(DataError, match="image 7: "):
        read(refer_world, max_pixels=100_000)
    split, truth, problems = read(refer_world, on_bad="skip", max_pixels=100_000)
    assert list(split.images) == ["8"] and set(truth.boxes) == {"2"} and len(problems.skipped) == 1
    assert read(refer_world, on_bad="skip", max_pixels=100_000, limit=1)[0] == split


def test_header_check_finds_what_the_header_shows(refer_world):
    path = refer_world.root / "images" / "train2014" / "COCO_train2014_000000000007.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read(refer_world, check_images="header")[0].images) == 2


def test_nothing_left_is_an_error(refer_world, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(CpgrError, match="no expression that can be used; the first problem: .*image file is missing"):
        read(refer_world, on_bad="skip", images=str(tmp_path / "none"))


STRUCTURES = [
    (lambda w: w.refs[0].pop("image_id"), "its image is not in instances.json"),
    (lambda w: w.refs[0].update(image_id=[1]), "its image is not in instances.json"),
    (lambda w: w.refs[0].update(sentences="x"), "no list of sentences"),
    (lambda w: w.refs[0].update(sentences=[7, {"sent": "x"}, {"sent_id": 9, "sent": "ok"}]), "no sentence with a sent_id"),
    (lambda w: w.refs.__setitem__(0, "x"), "is no ref with a split"),
    (lambda w: w.refs[0].pop("split"), "is no ref with a split"),
]


@pytest.mark.parametrize(("spoil", "problem"), STRUCTURES)
def test_records_of_the_wrong_shape(refer_world, spoil, problem):
    spoil(refer_world)
    refer_world.save()
    with pytest.raises(DataError, match=problem):
        read(refer_world)
    split, _, problems = read(refer_world, on_bad="skip")
    assert {"2", "3"} <= {e.expression_id for e in split.expressions} and any(problem in p for p in problems.summary())


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"images": 1' + b"0" * 5000 + b"}"])
def test_damaged_instances(refer_world, content):
    (refer_world.folder / "instances.json").write_bytes(content)
    with pytest.raises(DataError, match="instances.json: is not readable JSON"):
        read(refer_world)
    (refer_world.folder / "instances.json").write_text(json.dumps([1]))
    with pytest.raises(CpgrError, match="no REFER files"):
        read(refer_world)


COUNTS = {
    ("refcoco", "val"): (2, 17, 17), ("refcoco", "testA"): (5, 48, 12), ("refcoco", "testB"): (4, 26, 14), ("refcoco", "test"): (9, 74, 26),
    ("refcoco+", "val"): (2, 18, 18), ("refcoco+", "testA"): (5, 48, 11), ("refcoco+", "testB"): (4, 24, 12), ("refcocog:umd", "val"): (4, 17, 17),
}  # fmt: skip


@pytest.mark.parametrize(("dataset", "split"), COUNTS)
def test_real_files(real, dataset, split):
    images, expressions, masks = COUNTS[dataset, split]
    found, truth = read_split(DataConfig(format="refer", root=str(real("real/refer")), dataset=dataset), split, Problems())
    assert (len(found.images), len(found.expressions), len(truth.boxes), len(truth.masks)) == (images, expressions, expressions, masks)
    assert len(truth.object_ids) == expressions
