"""The Refinement stage of CPGR: Filtering, then Label Pairing with the true expressions."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from cpgr_kernels import box_iou, region_attention

from ..data.records import Expression, Split
from ..errors import CpgrError
from ..labels import Label, LabelTable
from ..progress import track
from ..regions import Frame
from ..stages import Generator, Grounder, Query
from .filtering import FilterConfig, filter_labels, region_mass
from .pairing import JUDGES, PairConfig, corrected, map_likeness, pair, posterior, text_scores
from .text_match import TextMatch
from .words import WordFit

log = logging.getLogger("cpgr")


@dataclass
class RefinementConfig:
    """The Refinement stage.

    Attributes:
        filtering: Filtering.
        pairing: Label Pairing.
    """

    filtering: FilterConfig = field(default_factory=FilterConfig)
    pairing: PairConfig = field(default_factory=PairConfig)


class AttentionRefiner:
    """`stages.Refiner`. Without a grounder (first cycle) it gates by ITM and pairs by the scores there are."""

    def __init__(self, config: RefinementConfig):
        self.config = config
        for value, name, known in (
            (config.pairing.rule, "pairing.rule", ("product", "paper", "correction", "none")),
            (config.pairing.weighting, "pairing.weighting", ("none", "posterior")),
            (config.pairing.pseudo, "pairing.pseudo", ("paired", "kept", "none")),
            (config.filtering.floor, "filtering.floor", ("image", "region", "none")),
            (config.filtering.rivals, "filtering.rivals", ("all", "category")),
        ):
            if value not in known:
                raise CpgrError(f"refinement.{name}: {value!r} is none of {', '.join(known)}")
        self.text_match = TextMatch(config.pairing.text_match)
        self.word_fit = WordFit(config.pairing.word_fit, self.text_match)

    def refine(
        self, basic: LabelTable, proposals: LabelTable, split: Split, generator: Generator, grounder: Grounder | None
    ) -> LabelTable:
        cycle = basic[0].cycle if len(basic) else 0
        if grounder is None:
            basic = self._gate(basic, split, generator)
        # asked for together: an image is encoded once for its pseudo expressions and its true ones
        maps = _maps(grounder, split, [*basic, *split.expressions]) if grounder else {}
        pairing = self.config.pairing
        asked = [name for name in JUDGES if getattr(pairing, name).weight] if pairing.rule == "product" else []
        judged = generator.judge(split.images, proposals, split.expressions, asked) if asked else {}
        answers = _answers(grounder, split) if grounder and pairing.rule == "correction" else {}
        vectors = self.text_match.embed([row.expression for row in basic] + [e.text for e in split.expressions])
        labels, expressions = basic.by_image(), split.by_image()
        rows: list[Label] = []
        for image_id, regions in track(proposals.by_image().items(), "refining"):
            regions = list(regions)
            texts = list(labels.get(image_id, LabelTable()))
            if grounder and self.config.filtering.enabled and texts:
                texts = self._filter(texts, regions, maps)
            rows += self._pair(expressions.get(image_id, []), texts, regions, vectors, maps, judged, answers, cycle)
        return LabelTable(rows)

    def _gate(self, basic: LabelTable, split: Split, generator: Generator) -> LabelTable:
        least = self.config.filtering.gate
        if not least or not len(basic):
            return basic
        chances = generator.match(split.images, basic)
        return LabelTable(
            row.keep(itm=c) if c > least else row.drop("filtering: the matcher does not see it (ITM)", itm=c)
            for row, c in zip(basic, chances, strict=True)
        )

    def _filter(self, texts: list[Label], regions: list[Label], maps: dict) -> list[Label]:
        config = self.config.filtering
        attention = maps["frame"]
        stacked = torch.stack([maps[_key(row)] for row in texts])
        mass = region_mass(stacked, regions, *attention, config)
        return filter_labels(texts, regions, mass, _inside(stacked, texts, *attention), config)

    def _pair(self, expressions: list[Expression], texts, regions, vectors, found_maps, judged, answers, cycle):
        config = self.config.pairing
        if not expressions or config.rule == "none":
            return self._settle(texts, set())
        asked = [vectors[e.text] for e in expressions]
        similar, which = text_scores(asked, texts, [vectors[t.expression] for t in texts], regions, config.dropped)
        scores = {"text": similar}
        if config.words.weight:
            scores["words"] = self.word_fit.scores([e.text for e in expressions], regions)
        if found_maps:
            frame = found_maps["frame"]
            maps = torch.stack([found_maps[_key(e)] for e in expressions])
            scores["own"] = region_mass(maps, regions, *frame, self.config.filtering)
            if texts:
                likeness = map_likeness(maps, torch.stack([found_maps[_key(t)] for t in texts]))
                scores["attention"] = likeness.gather(1, which.clamp(min=0)).masked_fill(which < 0, 0.0)
        for name, found in judged.items():
            scores[name] = torch.stack([found[e.expression_id] for e in expressions])
        overlaps = None
        if answers:
            boxes = torch.tensor([row.box for row in regions], dtype=torch.float64)
            overlaps = box_iou(torch.stack([answers[e.expression_id] for e in expressions]).double(), boxes)
            chances = overlaps / overlaps.sum(1, keepdim=True).clamp(min=1e-12)
        elif config.rule in ("paper", "correction"):
            alpha = config.alpha if config.rule == "paper" and "attention" in scores else 1.0
            combined = alpha * similar + (1 - alpha) * scores.get("attention", torch.zeros_like(similar))
            chances = (combined / config.text.temperature).softmax(-1)
        else:
            chances = posterior(scores, config)
        rows, chosen = [], set()
        for i, expression in enumerate(expressions):
            mine = pair(expression, chances[i], {n: v[i] for n, v in scores.items()}, regions, config, cycle)
            if overlaps is not None:
                best = int(chances[i].argmax())
                mine[best] = corrected(mine[best], answers[expression.expression_id].tolist(), float(overlaps[i, best]))
            rows += mine
            for j, row in enumerate(mine):
                if row.kept and which[i, j] >= 0:
                    chosen.add(int(which[i, j]))
        return self._settle(texts, chosen) + rows

    def _settle(self, texts: list[Label], chosen: set[int]) -> list[Label]:
        """Which pseudo expressions go on to train."""
        rule = self.config.pairing.pseudo
        if rule == "kept":
            return texts
        if rule == "none":
            return [t.drop("pairing: pseudo expressions do not train") if t.kept else t for t in texts]
        return [t if not t.kept or i in chosen else t.drop("pairing: no expression chose it") for i, t in enumerate(texts)]


def _answers(grounder: Grounder, split: Split) -> dict[str, torch.Tensor]:
    """The grounding model's box of every expression, by its id."""
    boxes = grounder.ground([Query(split.images[e.image_id], e.text) for e in split.expressions]).boxes
    return {e.expression_id: box for e, box in zip(split.expressions, boxes, strict=True)}


def _key(item) -> tuple:
    return (item.image_id, item.expression if isinstance(item, Label) else item.text)


def _maps(grounder: Grounder, split: Split, items) -> dict:
    """Attention maps by image and text, each asked for once; under `frame` the map's (grid, size, mode)."""
    keys = list(dict.fromkeys(_key(item) for item in items))
    attention = grounder.attend([Query(split.images[image_id], text) for image_id, text in keys])
    found: dict = dict(zip(keys, attention.maps, strict=True))
    found["frame"] = (attention.grid, attention.size, attention.mode)
    return found


def _inside(maps: torch.Tensor, texts: list[Label], grid: int, size: int, mode: str) -> torch.Tensor:
    """Attention mass inside each label's own box, [L]."""
    boxes = torch.tensor([row.box for row in texts], dtype=torch.float32)
    boxes = Frame(size, texts[0].width, texts[0].height, mode).to_frame(boxes)
    return region_attention(maps[:, None], boxes[:, None], (grid, grid), 0.0, (size, size)).flatten()
