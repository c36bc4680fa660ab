"""Scenes on disk as REFER files, so that they are read by the loader that reads RefCOCO.

    ROOT/scenes/refs(scenes).p     references and their sentences, by split
    ROOT/scenes/instances.json     COCO boxes, masks, keypoints and attributes of every object
    ROOT/scenes/captions.json      COCO captions of whole images
    ROOT/images/scenes/*.jpg
"""

import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import CpgrError
from ...progress import track
from .annotations import annotations, categories
from .captions import caption
from .grammar import expressions
from .render import render
from .sample import SMALLEST, sample_scene
from .vocabulary import supercategory

SPLITS = ("train", "val", "testA", "testB")
# As RefCOCO's testA refers to people and its testB to everything else.
REFERS_TO = {"testA": "thing", "testB": "shape"}
ENCODING = {"jpg": {"format": "JPEG", "quality": 93, "subsampling": 0}, "png": {"format": "PNG", "compress_level": 1}}
CAPTIONS = (None, 3)  # one caption of all objects and one of three


def write_scenes(root, *, seed: int, images: int, pixels: int = 128, name: str = "scenes",
                 expressions_per_referent: int = 3, referents: tuple[int, int] = (1, 3), held_out: int | None = None,
                 image_format: str = "jpg", overwrite: bool = False) -> dict:
    """Writes a world of `images` training scenes; returns {split: {"images", "refs", "expressions"}}.

    val, testA and testB hold `held_out` scenes each (default: a tenth of `images`, at least 20) and share none with
    another split. testA refers to things only, testB to shapes only. Every scene has `referents` (least, most) objects
    that are referred to. The same arguments give the same bytes. The folder is complete or absent: it is written beside
    `root` and then renamed; a killed process leaves at most a hidden `.NAME.partial-*` there. `root` must be new or
    empty; `overwrite` replaces an earlier world of the same name.
    """
    root = Path(root).resolve()
    if seed < 0 or images < 1 or not 1 <= referents[0] <= referents[1] or expressions_per_referent < 1:
        raise CpgrError("a world needs a seed >= 0, at least one image, one referent an image and one expression each")
    if pixels < SMALLEST:
        raise CpgrError(f"a scene needs at least {SMALLEST} pixels a side, not {pixels}")
    if image_format not in ENCODING:
        raise CpgrError(f"image format {image_format!r} is not one of {', '.join(ENCODING)}")
    _check_target(root, name, overwrite)
    counts = {split: held_out if held_out is not None else max(-(-images // 10), 20)
              for split in SPLITS}
    counts["train"] = images
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        summary = _write(partial, seed, counts, pixels, name, expressions_per_referent, referents, image_format)
        os.chmod(partial, 0o777 & ~_umask())
        _move(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_target(root, name, overwrite):
    """Only a world of this name is ever replaced: a mistyped folder loses nothing."""
    if not root.exists():
        return
    if not root.is_dir():
        raise CpgrError(f"{root} is a file; name a folder for the scenes")
    inside = {path.name for path in root.iterdir()}
    if not inside:
        return
    if not overwrite:
        raise CpgrError(f"{root} is not empty; name a new folder or ask to overwrite it")
    images = root / "images"
    pictures = {path.name for path in images.iterdir()} if images.is_dir() else set()
    others = inside - {name, "images"} or pictures - {name}
    if others or not (root / name / f"refs({name}).p").is_file():
        found = f" (it holds {', '.join(sorted(others)[:3])})" if others else ""
        raise CpgrError(f"{root} is not a world named {name!r}{found}, so it is not overwritten; name a new folder")


def _move(partial, root):
    """Puts the finished folder in its place; an earlier world is set aside first and removed last."""
    aside = None
    try:
        if root.exists() and any(root.iterdir()):
            aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.old-", dir=root.parent))
            os.replace(root, aside)
        os.replace(partial, root)
    except OSError as error:
        if aside is not None and not root.exists():
            os.replace(aside, root)
        raise CpgrError(f"{root} cannot be put in place by renaming: {error}; name a folder that does not exist yet"
                        ) from error
    if aside is not None:
        shutil.rmtree(aside)


def _scene(seed, split, number, pixels, per_referent, referents):
    """One scene with its expressions, from a random stream of its own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), number)))
    while True:
        scene = sample_scene(rng, pixels)
        among = [index for index, item in enumerate(scene.objects)
                 if REFERS_TO.get(split) in (None, supercategory(item.category))]
        found = expressions(scene, rng, referents=referents, per_referent=per_referent, among=among)
        if found:
            return scene, found, rng


def _write(folder, seed, counts, pixels, name, per_referent, referents, image_format):
    pictures = folder / "images" / name
    pictures.mkdir(parents=True)
    (folder / name).mkdir()
    images, objects, captions, refs, summary = [], [], [], [], {}
    jobs = [(split, number) for split in SPLITS for number in range(counts[split])]
    for split, number in track(jobs, f"writing {name}"):
        scene, found, rng = _scene(seed, split, number, pixels, per_referent, referents)
        image_id = len(images) + 1
        file_name = f"{name}_{image_id:06d}.{image_format}"
        picture, masks = render(scene, rng)
        Image.fromarray(picture).save(pictures / file_name, **ENCODING[image_format])
        images.append({"id": image_id, "file_name": file_name, "width": scene.width, "height": scene.height})
        first_id = len(objects) + 1
        objects += annotations(scene, masks, image_id, first_id)
        for limit in CAPTIONS:
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption(scene, rng, limit)})
        made = _refs(found, objects, first_id, file_name, split, refs)
        tally = summary.setdefault(split, {"images": 0, "refs": 0, "expressions": 0})
        tally["images"] += 1
        tally["refs"] += len(made)
        tally["expressions"] += len(found)
        refs += made
    about = {"description": "scenes of the built-in world", "seed": seed, "pixels": pixels}
    _dump(folder / name / "instances.json",
          {"info": about, "images": images, "annotations": objects, "categories": categories()})
    _dump(folder / name / "captions.json", {"info": about, "images": images, "annotations": captions})
    # The copy through JSON leaves no object shared by chance, which pickle would write as a reference.
    (folder / name / f"refs({name}).p").write_bytes(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))
    return summary


def _refs(found, objects, first_id, file_name, split, refs):
    """REFER records of one scene, numbered on from `refs`."""
    sentence = refs[-1]["sent_ids"][-1] + 1 if refs else 0
    made = {}
    for referring in found:
        record = objects[first_id - 1 + referring.index]
        ref = made.setdefault(referring.index, {
            "ref_id": len(refs) + len(made), "ann_id": record["id"], "image_id": record["image_id"],
            "category_id": record["category_id"], "file_name": file_name, "split": split, "sent_ids": [],
            "sentences": []})
        ref["sent_ids"].append(sentence)
        ref["sentences"].append({"sent_id": sentence, "sent": referring.text, "raw": referring.text,
                                 "tokens": referring.text.split()})
        sentence += 1
    return list(made.values())


def _dump(path, content):
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
