"""Label Pairing: which region a true expression names (CPGR's figure; CPL's real-query propagation;
reconstruction P of reference section 2.5, and the judges of the generator)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..labels import Label
from .words import WordConfig


@dataclass
class ScoreConfig:
    """One score of the product: its log-softmax over the image's regions at `temperature`, times `weight`.

    Attributes:
        weight: 0 leaves the score out.
        temperature: Sharpness; smaller trusts the score's differences more.
    """

    weight: float = 1.0
    temperature: float = 1.0


@dataclass
class PairConfig:
    """Label Pairing.

    Attributes:
        rule: `product` multiplies the normalised scores below over the image's regions; `paper` takes the pseudo
            expression with the greatest alpha * text + (1 - alpha) * attention; `correction` is CPL++'s released code: in later cycles the
            grounding model's own box, moved to the nearest region by 0.3 where they overlap by less than 0.5; `none` pairs nothing.
        alpha: Share of the text match in the rule `paper` (1 is CPL; cycle 1 has no attention and takes 1).
        text_match: `words`, `vectors:FILE` or `transformers:NAME_OR_FOLDER`.
        dropped: What a text that Filtering dropped loses in similarity; 2 or more excludes it.
        text: Text match with the region's pseudo expressions.
        words: Fit of the expression's words with the region's class, colours, place and size (`word_fit`); for photographs,
            whose expressions no template has.
        attention: Likeness of the expression's attention map and the pseudo expression's.
        own: Attention mass of the expression's map in the region.
        itg: Likelihood of the expression given the region, by the generator.
        itc: Contrast of the expression and the region, by the generator.
        itm: Matching of the expression and the region, by the generator (a pass of its own; 0 leaves it out).
        word_fit: What each kind of word counts in `words`.
        least: Pairs with a smaller posterior are dropped.
        agree: Drop a pair where the generator's best region is not that of the text and attention scores.
        weighting: A pair's weight in training: `none` or its `posterior`.
        true_text: Train Grounding on the pairs; without it they only choose pseudo expressions and judge.
        pseudo: Pseudo expressions that train with the pairs: `paired` (those an expression chose), `kept` (all that
            Filtering kept) or `none`.
    """

    rule: str = "product"
    alpha: float = 0.5
    text_match: str = "words"
    dropped: float = 0.1
    text: ScoreConfig = field(default_factory=lambda: ScoreConfig(1.0, 0.12))
    words: ScoreConfig = field(default_factory=lambda: ScoreConfig(0.0, 1.0))
    attention: ScoreConfig = field(default_factory=lambda: ScoreConfig(0.0, 0.2))
    own: ScoreConfig = field(default_factory=lambda: ScoreConfig(1.0, 0.2))
    itg: ScoreConfig = field(default_factory=lambda: ScoreConfig(1.0, 1.0))
    itc: ScoreConfig = field(default_factory=lambda: ScoreConfig(1.0, 1.0))
    itm: ScoreConfig = field(default_factory=lambda: ScoreConfig(0.0, 1.0))
    word_fit: WordConfig = field(default_factory=WordConfig)
    least: float = 0.0
    agree: bool = False
    weighting: str = "none"
    true_text: bool = True
    pseudo: str = "paired"


JUDGES = ("itg", "itc", "itm")  # the scores that the generator gives


def text_scores(expressions: list[torch.Tensor], labels: list[Label], vectors: list[torch.Tensor], regions: list[Label], dropped: float):
    """Best similarity with the texts of each region: [E, N] and the index of the best text, [E, N] (-1: no text)."""
    place = {row.region_id: j for j, row in enumerate(regions)}
    best = torch.full((len(expressions), len(regions)), -1.0)
    which = torch.full((len(expressions), len(regions)), -1)
    if not labels:
        return best.fill_(0.0), which
    similar = torch.stack(expressions) @ torch.stack(vectors).t()
    similar = similar - dropped * torch.tensor([not row.kept for row in labels])
    for i, row in enumerate(labels):
        j = place[row.region_id]
        better = similar[:, i] > best[:, j]
        best[:, j] = torch.where(better, similar[:, i], best[:, j])
        which[:, j] = torch.where(better, i, which[:, j])
    return best, which


def map_likeness(expression_maps: torch.Tensor, label_maps: torch.Tensor) -> torch.Tensor:
    """Histogram intersection of attention maps, [E, cells] and [L, cells] -> [E, L] in 0..1."""
    return torch.minimum(expression_maps[:, None], label_maps[None]).sum(-1)


def posterior(scores: dict[str, torch.Tensor], config: PairConfig) -> torch.Tensor:
    """The product of the scores, each normalised over the regions: [E, N], rows sum to 1."""
    logs = [
        getattr(config, name).weight * (value / getattr(config, name).temperature).log_softmax(-1)
        for name, value in scores.items()
        if getattr(config, name).weight
    ]
    if not logs:
        some = next(iter(scores.values()))
        return torch.full_like(some, 1 / some.shape[-1])
    return torch.stack(logs).sum(0).softmax(-1)


def pair(expression, chances: torch.Tensor, scores: dict[str, torch.Tensor], regions: list[Label], config: PairConfig, cycle: int) -> list[Label]:
    """Rows of one expression: the chosen region's is kept, the others stay with their scores and the reason.

    chances [N] posterior; scores: by name [N].
    """
    best = int(chances.argmax())
    rows = []
    for j, region in enumerate(regions):
        named = {"posterior": float(chances[j]), **{name: float(value[j]) for name, value in scores.items()}}
        row = replace(
            region, expression=expression.text, expression_id=expression.expression_id, kind="dataset",
            scores=named, cycle=cycle, weight=1.0,
        )  # fmt: skip
        rows.append(row if j == best else row.drop(f"pairing: region {regions[best].region_id} fits better"))
    chosen = rows[best]
    if config.weighting == "posterior":
        chosen = replace(chosen, weight=float(chances[best]))
    if float(chances[best]) < config.least:
        chosen = chosen.drop("pairing: no region fits well enough")
    elif config.agree and _disagree(scores, config):
        chosen = chosen.drop("pairing: the scores disagree")
    if not config.true_text and chosen.kept:
        chosen = chosen.drop("pairing: true expressions do not train")
    rows[best] = chosen
    return rows


def corrected(row: Label, predicted: list[float], iou: float) -> Label:
    """CPL++'s association correction (reference 2.4): the predicted box, or 0.3 of the nearest region's and 0.7 of it.

    row: the pair with the region nearest to the prediction; iou: their overlap.
    """
    if iou >= 0.5:
        return replace(row, box=list(predicted))
    return replace(row, box=[0.3 * p + 0.7 * b for p, b in zip(row.box, predicted, strict=True)])


def _disagree(scores: dict[str, torch.Tensor], config: PairConfig) -> bool:
    judges = {n: v[None] for n, v in scores.items() if n in JUDGES}
    others = {n: v[None] for n, v in scores.items() if n not in judges}
    if not judges or not others:
        return False
    return int(posterior(judges, config).argmax()) != int(posterior(others, config).argmax())
