"""What is measured: accuracy of a grounder, and the quality of labels against held ground truth.

Label quality is analysis only: it is computed after a step is done and written to disk, and nothing reads it back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from cpgr_kernels import box_iou

from .data.proposals.names import read_names
from .data.records import Split, Truth
from .labels import Label, LabelTable
from .stages import Grounder, Query

HIT = 0.5
BASELINES = ("largest", "best_scored", "named_class", "random")


def paired_iou(a: list, b: list) -> torch.Tensor:
    """IoU of box i of `a` with box i of `b`, [N]; corners in pixels."""
    if not a:
        return torch.zeros(0)
    return box_iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), pairwise=False)


def accuracy(iou: torch.Tensor) -> dict[str, float | None]:
    """Acc@0.5 with `>=` (TransVG, CPL), mean IoU and their count; None where nothing could be measured."""
    count = len(iou)
    return {
        "acc@0.5": float((iou >= HIT).double().mean()) if count else None,
        "mean_iou": float(iou.mean()) if count else None,
        "count": count,
    }


def evaluate(grounder: Grounder, split: Split, truth: Truth) -> tuple[dict[str, float], LabelTable]:
    """Ground every expression of the split that has a true box; the metrics and the answers."""
    asked = [e for e in split.expressions if e.expression_id in truth.boxes]
    answer = grounder.ground([Query(split.images[e.image_id], e.text) for e in asked])
    boxes = answer.boxes.tolist()
    iou = paired_iou(boxes, [truth.boxes[e.expression_id] for e in asked])
    rows = []
    for e, box, score, overlap in zip(asked, boxes, answer.scores.tolist(), iou.tolist(), strict=True):
        image = split.images[e.image_id]
        rows.append(
            Label(
                e.image_id, image.file_name, image.width, image.height, box, expression=e.text,
                expression_id=e.expression_id, scores={"confidence": score, "iou": overlap},
            )
        )  # fmt: skip
    return accuracy(iou), LabelTable(rows)


def label_quality(proposals: LabelTable, basic: LabelTable, refined: LabelTable, truth: Truth) -> dict[str, float | None]:
    """How good a cycle's labels are.

    keep_rate: share of the basic labels that Filtering kept. basic_precision and filter_precision: share of the
    labels before and after Filtering whose expression is true of its region and of no other object of the image,
    where the data set's objects can tell (the built-in world), else None. pairing_hit_rate: share of the true
    expressions with a true box whose chosen region has IoU >= 0.5 with it. proposal_recall: the same for the best
    proposal, so the most that pairing can reach.
    """
    made = [row for row in refined if row.kind != "dataset"]
    written = [row for row in basic if row.kind != "dataset"]
    passed = [row for row in made if not row.reason.startswith("filtering")]
    judge = text_judge(truth)
    chosen = {row.expression_id: row for row in refined if row.kind == "dataset" and not row.reason.startswith("pairing: region")}
    known = [e for e in chosen if e in truth.boxes]
    hits = paired_iou([chosen[e].box for e in known], [truth.boxes[e] for e in known]) >= HIT
    return {
        "keep_rate": len(passed) / len(made) if made else None,
        "basic_precision": _precision(written, judge),
        "filter_precision": _precision(passed, judge),
        "pairing_hit_rate": float(hits.double().mean()) if known else None,
        "proposal_recall": proposal_recall(proposals, chosen, truth),
    }


def pairing_baselines(proposals: LabelTable, refined: LabelTable, truth: Truth, resamples: int = 2000) -> dict:
    """Pairing beside choices that ask less of an expression, over the true expressions with a true box.

    largest, best_scored: the image's largest region, the one the detector is surest of; named_class: any region of the
    class that the expression's main word names (`names.txt`; any region at all where none is there); random: any
    region. The last two are exact expectations, not draws. Each has its hit rate (IoU >= 0.5), the difference
    pairing - baseline, and the difference's 95 % interval by a bootstrap over images. `ceiling` is the best region.
    """
    chosen = {row.expression_id: row for row in refined if row.kind == "dataset" and not row.reason.startswith("pairing: region")}
    regions = {image: list(rows) for image, rows in proposals.by_image().items()}
    known = [row for e, row in chosen.items() if e in truth.boxes and row.image_id in regions]  # a recipe may have no proposals
    hits = torch.tensor([_choices(row, regions[row.image_id], truth.boxes[row.expression_id]) for row in known], dtype=torch.float64)
    if not known:
        return {"count": 0, "images": 0}
    places = {image: i for i, image in enumerate(dict.fromkeys(row.image_id for row in known))}
    image = torch.tensor([places[row.image_id] for row in known])
    sums = torch.zeros(len(places), hits.shape[1] + 1, dtype=torch.float64).index_add_(0, image, torch.cat([hits, torch.ones(len(known), 1)], 1))
    draws = torch.Generator().manual_seed(0)
    drawn = torch.stack([sums[torch.randint(len(places), (len(places),), generator=draws)].sum(0) for _ in range(resamples)])
    rates, drawn = hits.mean(0), drawn[:, :-1] / drawn[:, -1:]
    found: dict = {"count": len(known), "images": len(places), "pairing": float(rates[0]), "ceiling": float(rates[1])}
    for i, name in enumerate(BASELINES, start=2):
        low, high = (drawn[:, 0] - drawn[:, i]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        found[name] = {"hit_rate": float(rates[i]), "difference": float(rates[0] - rates[i]), "low": low, "high": high}
    return found


def _choices(row: Label, regions: list[Label], box: list[float]) -> list[float]:
    """Hits of pairing, of the best region and of BASELINES for one expression."""
    names = read_names()
    hit = box_iou(torch.tensor([box], dtype=torch.float64), torch.tensor([r.box for r in regions], dtype=torch.float64))[0] >= HIT
    areas = [(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) for r in regions]
    scores = [r.scores.get("detector", 1.0) for r in regions]
    fits = names.fits(names.read(row.expression).head, [r.category for r in regions])
    named = [i for i, fit in enumerate(fits) if fit == 1] or list(range(len(regions)))
    mine = float(paired_iou([row.box], [box])[0] >= HIT)
    largest, best = hit[areas.index(max(areas))], hit[scores.index(max(scores))]
    return [mine, float(hit.any()), float(largest), float(best), float(hit[named].double().mean()), float(hit.double().mean())]


def proposal_recall(proposals: LabelTable, chosen: dict[str, Label], truth: Truth) -> float | None:
    """Share of the expressions' true boxes that some proposal of the image meets with IoU >= 0.5; None without proposals."""
    regions = {image: [row.box for row in rows] for image, rows in proposals.by_image().items()}
    known = [(row.image_id, truth.boxes[e]) for e, row in chosen.items() if e in truth.boxes]
    if not known or not regions:
        return None
    found = sum(
        bool((box_iou(torch.tensor([box], dtype=torch.float64), torch.tensor(regions[image], dtype=torch.float64)) >= HIT).any())
        for image, box in known
    )
    return found / len(known)


def _precision(rows: list[Label], judge: Callable[[Label], tuple[bool, bool]] | None) -> float | None:
    if judge is None or not rows:
        return None
    return sum(judge(row)[1] for row in rows) / len(rows)


def text_quality(basic: LabelTable, refined: LabelTable, truth: Truth) -> dict[str, dict]:
    """What the made expressions are worth, by kind (`all`, `generated`, `template`), `before` and `after` Filtering.

    With o(l) the object that label l's region covers (IoU >= 0.5) and den(E) the objects of the image that expression E is
    true of, as the grammar's parser and the objects' attributes say, over the L labels there are:
        Region-Centrality         centrality     = |{l : o(l) in den(E_l)}| / L     the text is true of its region
        Reference-Discrimination  discrimination = |{l : den(E_l) = {o(l)}}| / L    and of nothing else in the scene
    A text that cannot be read, or a region that covers no object, counts as neither. Empty where the data set's objects
    carry no attributes.
    """
    judge = text_judge(truth)
    if judge is None:
        return {}
    stages = {
        "before": list(basic),
        "after": [row for row in refined if row.kind != "dataset" and not row.reason.startswith("filtering")],
    }
    found: dict[str, dict] = {}
    for stage, rows in stages.items():
        verdicts = [(row.kind, judge(row)) for row in rows]
        for kind in ("all", "generated", "template"):
            mine = [verdict for k, verdict in verdicts if kind in ("all", k)]
            if mine:
                found.setdefault(kind, {})[stage] = {
                    "centrality": sum(true for true, _ in mine) / len(mine),
                    "discrimination": sum(unique for _, unique in mine) / len(mine),
                    "count": len(mine),
                }
    return found


def text_judge(truth: Truth) -> Callable[[Label], tuple[bool, bool]] | None:
    """A function that says whether a label's expression is true of its region, and of it alone; None where the data
    set's objects carry no attributes. The built-in world's parser reads the text; one it cannot read is not true."""
    from .data.scenes.grammar import judge
    from .data.scenes.annotations import scene_from_annotations

    annotated = {image: rows for image, rows in truth.objects.items() if rows and "attributes" in rows[0]}
    if not annotated:
        return None
    scenes: dict[str, tuple] = {}

    def of(row: Label) -> tuple[bool, bool]:
        if row.image_id not in annotated or row.box is None:
            return False, False
        if row.image_id not in scenes:
            objects = annotated[row.image_id]
            boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (o["bbox"] for o in objects)], dtype=torch.float64)
            scenes[row.image_id] = scene_from_annotations({"width": row.width, "height": row.height}, objects), boxes
        scene, boxes = scenes[row.image_id]
        iou, index = box_iou(torch.tensor([row.box], dtype=torch.float64), boxes)[0].max(0)
        verdict = judge(scene, row.expression, int(index)) if iou >= HIT else None
        return verdict or (False, False)

    return of
