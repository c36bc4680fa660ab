"""Pretraining of the models that ship with the package: `python -m cpgr.pretrain [--out DIR] [--only PART ...]`.

They stand for what the published systems download: a detector with attributes (VinVL, DETR), a BERT whose word
states know what the words look like, and a BLIP-2. All of them see scenes of their own seeds with detection
labels (boxes, categories, attributes) and captions of whole images. No referring expression is drawn, so no run's
pairs can be among them; the grammar's words are listed for the vocabularies, without any region. With `--context`
BLIP-2's phrases of boxes are in part the first cycle's templates, made by rule from the same detection labels.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

PARTS = ("detector", "bert", "blip2", "judge")


def main(argv=None) -> None:
    from ..data.proposals.tiny_detector import TinyDetector
    from ..training import make_accelerator, seed_everything
    from ..vocabulary import BUILTIN
    from .blip2 import load_region_blip2, train_blip2
    from .detector import cell_tokens, train_detector
    from .quality import held_out, quality
    from .scenes import draw
    from .words import train_bert, word_list

    parser = argparse.ArgumentParser(prog="python -m cpgr.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILTIN, help="folder of the weights (default: the package's own)")
    parser.add_argument("--images", type=int, default=8000, help="scenes to draw")
    parser.add_argument("--detector-steps", type=int, default=700)
    parser.add_argument("--bert-steps", type=int, default=800)
    parser.add_argument("--blip2-steps", type=int, default=2400)
    parser.add_argument("--context", type=float, default=0.5, help="share of BLIP-2's phrases of boxes that are the first cycle's templates (0: none)")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log = logging.getLogger("cpgr")
    accelerator = make_accelerator()
    args.out.mkdir(parents=True, exist_ok=True)
    if set(args.only) - {"judge"}:
        drawn, words = draw(args.images), word_list()
        log.info("%d scenes, %d words", len(drawn), len(words))
    if "detector" in args.only:
        seed_everything("pretrain", "detector")
        train_detector(drawn, args.out, args.detector_steps, accelerator)
    if "bert" in args.only:
        detector = TinyDetector.from_pretrained(args.out / "detector").float().eval().requires_grad_(False)
        with accelerator.autocast():
            tokens = cell_tokens(detector, drawn)
        seed_everything("pretrain", "bert")
        train_bert(drawn, words, tokens, args.out, args.bert_steps, accelerator)
    if "blip2" in args.only:
        seed_everything("pretrain", "blip2")
        train_blip2(drawn, words, args.out, args.blip2_steps, args.context, accelerator)
    if "judge" in args.only:
        found = quality(*load_region_blip2(args.out), held_out(100), args.out, accelerator)
        print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))
    for work in args.out.glob("*.work"):
        shutil.rmtree(work)
