"""A cycle's gallery: some expressions with what the cycle made of them, for the report to show.

The first cycle picks the expressions, right and wrong ones, and the later cycles show the same, so that they can be
compared. Like the metrics it is analysis: it is written when the cycle's training is over and no step reads it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .cycle import CycleFolder, write_json
from .data.records import Expression, Image, Split, Truth
from .labels import Label, LabelTable
from .metrics import HIT, paired_iou
from .stages import Attention, Grounder, Query

TRAINING, EVALUATION = "training", "evaluation"
SHOWN = 12  # expressions of the training split, and as many of the evaluated splits together
FILE = "gallery.json"

Held = tuple[Split, Truth]


class Pick(NamedTuple):
    """An expression of the gallery: its role, its split's name and the expression."""

    role: str
    split: str
    expression: Expression


def collect(here: CycleFolder, grounder: Grounder, train: Held, evaluated: Mapping[str, Held]) -> None:
    """Write the gallery of a cycle whose labels, weights and predictions are there to `gallery.json` in its folder."""
    refined = LabelTable.load(here.refined)
    picks = _earlier(here, train, evaluated) or _pick(here, refined, train, evaluated)
    splits = {(TRAINING, train[0].name): train, **{(EVALUATION, name): held for name, held in evaluated.items()}}
    images = [splits[p.role, p.split][0].images[p.expression.image_id] for p in picks]
    queries = [Query(image, p.expression.text) for image, p in zip(images, picks, strict=True)]
    answers, attention = grounder.ground(queries), grounder.attend(queries)
    mine = {p.expression.image_id for p in picks if p.role == TRAINING}
    proposals = LabelTable.load(here.proposals).where(lambda row: row.image_id in mine).by_image()
    labels = refined.where(lambda row: row.image_id in mine).by_image()
    entries = []
    for i, (pick, image) in enumerate(zip(picks, images, strict=True)):
        truth = splits[pick.role, pick.split][1].boxes.get(pick.expression.expression_id)
        answer = {"box": _rounded(answers.boxes[i].tolist(), 2), "score": _number(float(answers.scores[i]))}
        answer["iou"] = _iou(answer["box"], truth)
        entry = {
            "role": pick.role, "split": pick.split, "expression_id": pick.expression.expression_id,
            "expression": pick.expression.text, "image": _image(image, here.root), "true_box": _rounded(truth, 2),
            "prediction": answer, "iou": answer["iou"], "attention": _attention(attention, i),
        }  # fmt: skip
        if pick.role == TRAINING:
            entry["proposals"] = _proposals(proposals.get(image.image_id, ()))
            entry |= _labels(labels.get(image.image_id, ()), pick.expression, truth)
        entries.append(entry)
    write_json(here.folder / FILE, {"cycle": here.number, "entries": entries})


def _earlier(here: CycleFolder, train: Held, evaluated: Mapping[str, Held]) -> list[Pick]:
    """The expressions of the first gallery of this run, if there is one and the data still has them."""
    held = {TRAINING: {train[0].name: train}, EVALUATION: dict(evaluated)}
    known = {
        (role, name): {e.expression_id: e for e in split.expressions} for role, some in held.items() for name, (split, _) in some.items()
    }
    for number in range(1, here.number):
        try:
            entries = json.loads((here.root / f"cycle-{number}" / FILE).read_text())["entries"]
            wanted = [(e["role"], e["split"], e["expression_id"]) for e in entries]
            return [Pick(role, name, known[role, name][key]) for role, name, key in wanted]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def _pick(here: CycleFolder, refined: LabelTable, train: Held, evaluated: Mapping[str, Held]) -> list[Pick]:
    split, truth = train
    paired = {row.expression_id: row.box for row in refined if row.kind == "dataset" and row.kept}
    hits = {key: _iou(box, truth.boxes.get(key)) for key, box in paired.items()}
    picks = [Pick(TRAINING, split.name, e) for e in _mixed(split, hits, SHOWN)]
    for place, (name, (split, _)) in enumerate(evaluated.items()):
        # 12 over 5 splits: the first two have three, the others two
        share = SHOWN // len(evaluated) + (place < SHOWN % len(evaluated))
        answers = LabelTable.load(here.folder / f"predictions-{name}.parquet")
        hits = {row.expression_id: row.scores.get("iou") for row in answers}
        picks += [Pick(EVALUATION, name, e) for e in _mixed(split, hits, share)]
    return picks


def _mixed(split: Split, iou: Mapping[str, float | None], count: int) -> list[Expression]:
    """`count` expressions of the split, half of them right where there are enough, each of another image if possible."""
    order = list(split.expressions)
    random.Random(f"gallery {split.name}").shuffle(order)
    seen, first, again = set(), [], []
    for expression in order:
        (again if expression.image_id in seen else first).append(expression)
        seen.add(expression.image_id)
    order = first + again
    right = [e for e in order if (iou.get(e.expression_id) or 0.0) >= HIT]
    wrong = [e for e in order if (iou.get(e.expression_id) or 0.0) < HIT]
    few = min(len(wrong), count // 2)
    chosen = {e.expression_id for e in (right[: count - few] + wrong)[:count]}
    return [e for e in split.expressions if e.expression_id in chosen]


def _labels(rows: Iterable[Label], expression: Expression, truth: list[float] | None) -> dict:
    """What Refinement made of a training expression, and the pseudo expressions of its image."""
    rows = list(rows)
    pairs = [row for row in rows if row.kind == "dataset" and row.expression_id == expression.expression_id]
    best = max(pairs, key=lambda row: (row.kept, row.scores.get("posterior", 0.0)), default=None)
    kept = best is not None and best.kept
    reason = "" if kept else best.reason if best else "no region was found for it"
    return {
        "chosen": {"box": _rounded(best.box, 2), "region_id": best.region_id, "weight": best.weight} if kept else None,
        "reason": reason,
        "iou": _iou(best.box, truth) if kept else None,
        "pairs": [{"region_id": row.region_id, "scores": _scores(row)} for row in pairs],
        "labels": [
            {
                "expression": row.expression, "kind": row.kind, "region_id": row.region_id, "kept": row.kept,
                "reason": row.reason, "scores": _scores(row),
            }
            for row in rows
            if row.kind not in ("dataset", "proposal")
        ],
    }  # fmt: skip


def _proposals(rows: Iterable[Label]) -> list[dict]:
    return [
        {"region_id": r.region_id, "box": _rounded(r.box, 2), "words": r.words, "score": _number(r.scores.get("detector"))} for r in rows
    ]


def _image(image: Image, root: Path) -> dict:
    """The image; one inside the run's folder is named from there, so that the folder can be moved."""
    path, folder = Path(image.path).resolve(), root.resolve()
    stored = path.relative_to(folder) if path.is_relative_to(folder) else path
    return {"id": image.image_id, "path": str(stored), "width": image.width, "height": image.height}


def _attention(attention: Attention, index: int) -> dict:
    values = attention.maps[index].tolist()
    return {"grid": attention.grid, "size": attention.size, "mode": attention.mode, "values": [_number(v) for v in values]}


def _iou(box: list[float] | None, truth: list[float] | None) -> float | None:
    if box is None or truth is None:
        return None
    return round(float(paired_iou([box], [truth])[0]), 4)


def _scores(row: Label) -> dict[str, float | None]:
    return {name: _number(value) for name, value in row.scores.items()}


def _number(value: float | None) -> float | None:
    """Four digits that count; JSON has no NaN and no infinity."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _rounded(values: list[float] | None, digits: int) -> list[float] | None:
    return None if values is None else [round(float(v), digits) for v in values]
