"""Tiny data sets written in the true formats, and the place of real ones."""

import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

REAL = Path(os.environ.get("CPGR_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def real():
    """A path inside the real data, or a skipped test where there is none."""

    def at(name):
        path = REAL / name
        if not path.exists():
            pytest.skip(f"no {path}; set CPGR_REAL_DATA to the folder with real data")
        return path

    return at


@pytest.fixture
def pictures():
    """Write small JPEG or PNG images."""

    def write(folder, *names, size=(64, 48), colour=(200, 40, 40)):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", size, colour).save(folder / name)

    return write


class ReferWorld:
    """Three images, four refs, six sentences, as REFER writes them; change the lists, then `save`."""

    def __init__(self, root, name="refcoco", by="unc"):
        self.root, self.folder, self.by = root, root / name, by
        self.images = [{"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": 64, "height": 48} for i in (7, 8, 9)]
        polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
        self.annotations = [
            {"id": 100 + i, "image_id": image, "category_id": 1, "bbox": [10.0, 10.0, 20.0, 20.0], "segmentation": polygon, "attributes": {"colour": "red"}}
            for i, image in enumerate((7, 7, 8, 9))
        ]
        self.refs = []
        for i, (image, split, texts) in enumerate(
            [(7, "train", ["red box", "left box"]), (8, "train", ["blue box"]), (7, "train", ["small box"]), (9, "testA", ["a man", "the man"])]
        ):
            first = sum(len(ref["sentences"]) for ref in self.refs)
            sentences = [{"raw": t, "sent": t, "sent_id": first + k, "tokens": t.split()} for k, t in enumerate(texts)]
            ann_id = {0: 100, 1: 102, 2: 101, 3: 103}[i]
            self.refs.append({"ref_id": i, "ann_id": ann_id, "image_id": image, "category_id": 1, "file_name": "ignored_0.jpg", "split": split,
                              "sent_ids": [s["sent_id"] for s in sentences], "sentences": sentences})  # fmt: skip

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"refs({self.by}).p").write_bytes(pickle.dumps(self.refs, protocol=2))
        tables = {"images": self.images, "annotations": self.annotations, "categories": [{"id": 1, "name": "box"}]}
        (self.folder / "instances.json").write_text(json.dumps(tables))
        return self


@pytest.fixture
def refer_world(tmp_path, pictures):
    world = ReferWorld(tmp_path / "data")
    pictures(world.root / "images" / "train2014", *(image["file_name"] for image in world.images))
    return world.save()


@pytest.fixture
def new_refer_world():
    return ReferWorld
