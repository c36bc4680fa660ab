"""`cpgr ground`: find the region an expression names in an image, and draw it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import CpgrError, DataError
from .options import add_part, add_run, opened_grounder

DESCRIPTION = """Find the region an expression names in an image, by the model a run has trained.

Prints x1,y1,x2,y2 in pixels, the score and the expression, one line each, and writes a picture with the box
(solid) over the model's attention:

    cpgr ground photo.jpg "the dog behind the bench" --run runs/cpgr
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image file")
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION", help="what to find; several give several panels")
    add_run(parser)
    add_part(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture to write (default: IMAGE's name with _grounded.png, here)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Ground, print and draw."""
    out = args.out or Path(f"{args.image.stem}_grounded.png")
    _check_out(out, args.image)
    texts = [_text(text) for text in args.expressions]
    picture, image = _open(args.image)

    from ..stages import Query

    queries = [Query(image, text) for text in texts]
    with opened_grounder(args.run, args.cycle, args.part) as (cycle, grounder):
        answers, attention = grounder.ground(queries), grounder.attend(queries)
    found = [
        {"expression": text, "box": [round(v, 1) for v in box], "score": round(score, 4)}
        for text, box, score in zip(texts, answers.boxes.tolist(), answers.scores.tolist(), strict=True)
    ]
    _draw(picture, found, attention, out)
    _show(found, {"image": str(args.image), "width": image.width, "height": image.height, "cycle": cycle, "picture": str(out)}, args.json)
    return 0


def _check_out(out: Path, image: Path) -> None:
    """Before the model is loaded: the picture must have a kind, a place, and not be the image itself."""
    from PIL import Image as pil

    if out.suffix.lower() not in pil.registered_extensions():
        raise CpgrError(f"--out {out}: name a picture, such as {out.stem or 'found'}.png")
    if not out.parent.is_dir():
        raise CpgrError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and image.exists() and out.samefile(image):
        raise CpgrError(f"--out {out} is the image itself; name another file")


def _text(text: str) -> str:
    from ..data.readers.collect import clean_text
    from ..vocabulary import clean

    cleaned = clean_text(text)
    if not cleaned or not clean(cleaned):
        raise CpgrError(f"the expression {text!r} has no words; say what to find, such as \"the red car on the left\"")
    return cleaned


def _open(path: Path):
    from ..data.images import open_image
    from ..data.records import Image

    try:
        picture = open_image(path)
    except DataError as error:
        raise CpgrError(f"{path}: {error.problem}") from error
    return picture, Image(str(path), path.name, path, *picture.size)


def _draw(picture, found: list[dict], attention, out: Path) -> None:
    from ..drawing import Heat, Mark, Panel, draw, side_by_side

    panels = []
    for one, values in zip(found, attention.maps.tolist(), strict=True):
        heat = Heat(values, attention.grid, attention.size, attention.mode)
        panels.append(draw(picture, Panel([Mark(one["box"])], heat, f"{one['expression']}  ({one['score']:.2f})")))
    side_by_side(panels).save(out)


def _show(found: list[dict], about: dict, as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps({**about, "answers": found}, indent=2, ensure_ascii=False))
        return
    for one in found:
        print(f"{','.join(f'{v:.1f}' for v in one['box'])}  {one['score']:.3f}  {one['expression']}")
    print(f"picture: {about['picture']}")
