"""The built-in world on disk: REFER's layout, disjoint splits, the same bytes again, whole or absent."""

import hashlib
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cpgr.data.scenes import THINGS, judge, scene_from_annotations, write_scenes
from cpgr.errors import CpgrError, DataError


def load(root, name="scenes"):
    refs = pickle.loads((root / name / f"refs({name}).p").read_bytes())
    return refs, json.loads((root / name / "instances.json").read_text())


def digest(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds") / "world"
    summary = write_scenes(root, seed=3, images=230)
    return root, summary, *load(root)


def test_layout_and_counts(world):
    root, summary, refs, instances = world
    images = {split: tally["images"] for split, tally in summary.items()}
    assert images == {"train": 230, "val": 23, "testA": 23, "testB": 23}
    assert {path.name for path in (root / "scenes").iterdir()} == {"captions.json", "instances.json", "refs(scenes).p"}
    names = {image["file_name"] for image in instances["images"]}
    assert names == {path.name for path in (root / "images" / "scenes").iterdir()} and len(names) == 299
    for split, tally in summary.items():
        chosen = [ref for ref in refs if ref["split"] == split]
        assert tally["refs"] == len(chosen)
        assert tally["expressions"] == sum(len(ref["sentences"]) for ref in chosen)


def test_references_have_refers_fields(world):
    _, _, refs, instances = world
    by_id = {record["id"]: record for record in instances["annotations"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    assert [ref["ref_id"] for ref in refs] == list(range(len(refs)))
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    assert [sentence["sent_id"] for sentence in sentences] == list(range(len(sentences)))
    for ref in refs:
        assert set(ref) == {"ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids",
                            "sentences"}
        record = by_id[ref["ann_id"]]
        assert (record["image_id"], record["category_id"]) == (ref["image_id"], ref["category_id"])
        assert files[ref["image_id"]] == ref["file_name"]
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"sent", "raw", "tokens", "sent_id"}
            assert sentence["tokens"] == sentence["sent"].split()


def test_every_stored_expression_is_true_of_its_annotation_alone(world):
    _, _, refs, instances = world
    images = {image["id"]: image for image in instances["images"]}
    records = {}
    for record in instances["annotations"]:
        records.setdefault(record["image_id"], []).append(record)
    for ref in refs:
        scene = scene_from_annotations(images[ref["image_id"]], records[ref["image_id"]])
        index = [record["id"] for record in records[ref["image_id"]]].index(ref["ann_id"])
        for sentence in ref["sentences"]:
            assert judge(scene, sentence["sent"], index) == (True, True)


def test_splits_share_no_scene_and_refer_as_named(world):
    root, _, refs, instances = world
    names = {category["id"]: category for category in instances["categories"]}
    splits = {}
    for ref in refs:
        assert splits.setdefault(ref["image_id"], ref["split"]) == ref["split"]
        kind = names[ref["category_id"]]["supercategory"]
        assert kind == ("thing" if names[ref["category_id"]]["name"] in THINGS else "shape")
        assert kind == {"testA": "thing", "testB": "shape"}.get(ref["split"], kind)
    assert len(splits) == len(instances["images"])  # every image is referred to
    contents = {image["id"]: digest_of(root, image) for image in instances["images"]}
    assert len(set(contents.values())) == len(contents)
    layouts = {}
    for record in instances["annotations"]:
        layouts.setdefault(record["image_id"], []).append((record["category_id"], *record["bbox"]))
    assert len(set(map(tuple, layouts.values()))) == len(layouts)
    for split in ("train", "val"):
        chosen = {names[ref["category_id"]]["supercategory"] for ref in refs if ref["split"] == split}
        assert chosen == {"thing", "shape"}


def digest_of(root, image):
    return hashlib.sha256((root / "images" / "scenes" / image["file_name"]).read_bytes()).hexdigest()


def test_coco_reads_the_annotations(world, capsys):
    root, _, _, instances = world
    coco = COCO(str(root / "scenes" / "instances.json"))
    for record in instances["annotations"][:300]:
        mask = coco.annToMask(record)
        assert mask.shape == (128, 128) and mask.sum() == record["area"]
        assert coco_mask.toBbox(record["segmentation"]).tolist() == record["bbox"]
        assert len(record["keypoints"]) == 15 and record["num_keypoints"] == 5
        assert set(record["attributes"]) == {"colour", "size", "pattern"}
    captions = COCO(str(root / "scenes" / "captions.json"))
    assert len(captions.getAnnIds()) == 2 * len(instances["images"])
    capsys.readouterr()


def test_images_decode(world):
    root, _, _, instances = world
    for image in instances["images"][:30]:
        pixels = np.asarray(Image.open(root / "images" / "scenes" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) and pixels.std() > 10


def test_same_seed_same_bytes_other_seed_other_world(tmp_path):
    settings = dict(images=6, held_out=3, image_format="png")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_scenes(tmp_path / name, seed=seed, **settings)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b and set(a) == set(c)
    assert not set(a.values()) & set(c.values())
    write_scenes(tmp_path / "longer", seed=1, images=9, held_out=3, image_format="png")
    longer = digest(tmp_path / "longer")
    assert all(longer[name] == a[name] for name in (f"images/scenes/scenes_{k:06d}.png" for k in range(1, 7)))


def test_options(tmp_path):
    write_scenes(tmp_path / "w", seed=0, images=4, pixels=96, name="small", referents=(2, 2),
                 expressions_per_referent=1, held_out=1)
    refs, instances = load(tmp_path / "w", "small")
    assert all((image["width"], image["height"]) == (96, 96) for image in instances["images"])
    train = [ref for ref in refs if ref["split"] == "train"]
    assert len(train) == 8 and all(len(ref["sentences"]) == 1 for ref in refs)
    for wrong in (dict(seed=-1, images=1), dict(seed=0, images=0), dict(seed=0, images=1, referents=(0, 1)),
                  dict(seed=0, images=1, pixels=32), dict(seed=0, images=1, image_format="gif")):
        with pytest.raises(CpgrError):
            write_scenes(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_only_an_earlier_world_is_overwritten(tmp_path):
    root = tmp_path / "w"
    root.mkdir()  # an empty folder is fine
    write_scenes(root, seed=0, images=2, held_out=1)
    before = digest(root)
    with pytest.raises(CpgrError, match="not empty"):
        write_scenes(root, seed=1, images=2, held_out=1)
    assert digest(root) == before
    write_scenes(root, seed=1, images=2, held_out=1, overwrite=True)
    assert digest(root) != before and set(digest(root)) == set(before)
    (root / "images" / "train2014").mkdir()
    with pytest.raises(CpgrError, match="train2014"):
        write_scenes(root, seed=1, images=2, held_out=1, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(CpgrError, match="thesis"):
        write_scenes(tmp_path / "mine", seed=1, images=2, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CpgrError, match="is a file"):
        write_scenes(tmp_path / "file", seed=1, images=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "w"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from cpgr.data.scenes import write

    root = tmp_path / "w"
    write_scenes(root, seed=0, images=2, held_out=1)
    before = digest(root)
    calls = []

    def fail_late(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*arguments)

    real = write.render
    monkeypatch.setattr(write, "render", fail_late)
    for target in (root, tmp_path / "new"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            write_scenes(target, seed=1, images=5, overwrite=True)
    assert digest(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_killed_write_leaves_no_half_world(tmp_path):
    target = str(tmp_path / "w")
    code = f"from cpgr.data.scenes import write_scenes; write_scenes({target!r}, seed=0, images=100000)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        until = time.monotonic() + 10
        while not any(tmp_path.glob(".w.partial-*/images/scenes/*.jpg")) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any(tmp_path.glob(".w.partial-*")) and not (tmp_path / "w").exists()
    write_scenes(tmp_path / "w", seed=0, images=2, held_out=1)
    assert len(load(tmp_path / "w")[1]["images"]) == 5


def test_foreign_annotations_are_refused_clearly():
    record = {"id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
    with pytest.raises(DataError, match="annotation 5"):
        scene_from_annotations({"width": 10, "height": 10}, [record])
