"""MAttNet: modular attention over a detector's regions, trained by ranking (CVPR 2018).

Subject, location and relationship modules each match a part of the expression with every region; the expression says how much
each counts. Written from the paper and its released network's facts. What a ranking loss needs beside a label's box, other
regions of its image, comes from the detector that the model also chooses among when it answers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from cpgr_kernels import box_iou
from torch import nn

from ..data.proposals import ProposalConfig, build_detector, propose
from ..data.records import Image, Split
from ..errors import CpgrError
from ..labels import Label
from ..regions import cell_coverage
from ..stages import Images, Query
from ..training import TrainingConfig
from .backbones import map_branch
from .candidates import NONE, SAME_OBJECT, Candidates, Places
from .grounder import Examples, GrounderConfig
from .maps import pack, unpack
from .recurrent import RecurrentConfig, RecurrentEncoder
from .wordwise import WordGrounder

ATTRIBUTES = "attributes.json"


@dataclass
class MAttNetConfig(GrounderConfig):
    """MAttNet; the defaults are the published ones, but for the detector (there Mask R-CNN's boxes and features).

    Attributes:
        language: The bidirectional LSTM.
        proposals: The detector whose regions it chooses among, as the run's `proposals`.
        detection: How many of them, and their words.
        width: Width of the joint embedding.
        side: Cells a side of the grid that is read in each region.
        norm: Length to which visual features are scaled at the start.
        visual_dropout: Dropout before the attributes.
        match_dropout: Dropout in the matching layers.
        margin: Margin of the ranking losses.
        visual_rank: Weight of a label's region against another region of its image.
        language_rank: Weight of a label's expression against another one of its image.
        loss_attributes: Weight of the attributes' cross-entropy.
        attributes: How many of the detector's attribute words are learned, the most frequent ones.
        same_category: Share of the negatives that are of the region's own category, where there are such.
        negatives: Other regions that each label is ranked against.
        positive: A label's region: its own `box`, or the `candidate` that meets it best (where one has IoU 0.5 with it).
    """

    language: RecurrentConfig = field(
        default_factory=lambda: RecurrentConfig("lstm", word_width=512, inner_width=512, width=512, word_dropout=0.5, dropout=0.0, max_words=10)
    )
    proposals: str = "builtin"
    detection: ProposalConfig = field(default_factory=lambda: ProposalConfig(min_score=0.65))
    width: int = 512
    side: int = 7
    norm: float = 20.0
    visual_dropout: float = 0.2
    match_dropout: float = 0.1
    margin: float = 0.1
    visual_rank: float = 1.0
    language_rank: float = 1.0
    loss_attributes: float = 1.0
    attributes: int = 50
    same_category: float = 0.3
    negatives: int = 1
    positive: Literal["box", "candidate"] = "box"
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=30_000, batch_size=112, learning_rate=4e-4, weight_decay=0.0, betas=(0.8, 0.999), warmup=0, schedule="exponential",
            falls=(8 / 30,), final_rate=0.1 ** (22 / 8),
        )
    )  # fmt: skip

    def __post_init__(self):
        if min(self.side, self.negatives) < 1 or self.margin <= 0:
            raise CpgrError(f"mattnet: side {self.side} and negatives {self.negatives} must be 1 or more, margin {self.margin} more than 0")


class Scaled(nn.Module):
    """Features brought to length 1, times a learned factor each."""

    def __init__(self, width: int, norm: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), norm))

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.weight


class Matching(nn.Module):
    """The cosine of a region's and a phrase's embedding."""

    def __init__(self, visual: int, phrase: int, width: int, dropout: float):
        super().__init__()

        def embed(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.BatchNorm1d(width)
            )

        self.visual, self.phrase = embed(visual), embed(phrase)

    def forward(self, visual, phrase):
        """visual [B, ..., V], phrase [B, P] -> [B, ...]."""
        seen = F.normalize(self.visual(visual.flatten(0, -2)).float(), dim=-1).view(*visual.shape[:-1], -1)
        said = F.normalize(self.phrase(phrase).float(), dim=-1)
        return (seen.flatten(1, -2) @ said[:, :, None]).view(visual.shape[:-1])


class Phrase(nn.Module):
    """The part of an expression that a module reads: its words' mean, weighted by attention."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, states, embedded, mask):
        scores = self.score(states).squeeze(-1).float().masked_fill(~mask, -1e9)
        return (scores.softmax(-1)[:, None] @ embedded.float()).squeeze(1)


class MAttNetNetwork(nn.Module):
    """Scores of regions for expressions."""

    def __init__(self, config: MAttNetConfig, branch: nn.Module, words: int, attributes: int):
        super().__init__()
        self.config, self.branch, self.scales, self.grid = config, branch, branch.scales, branch.scales[-1][1]
        width, norm, language = config.width, config.norm, config.language
        low, high = self.scales[-2][0], self.scales[-1][0]
        self.language, phrase = RecurrentEncoder(language, words), language.embedded
        self.balance = nn.Linear(2 * language.width, 3)
        self.phrases = nn.ModuleList(Phrase(2 * language.width) for _ in range(3))
        self.low_norm, self.high_norm, self.context_norm = Scaled(low, norm), Scaled(high, norm), Scaled(high, norm)
        self.look_norm, self.phrase_norm = Scaled(width, norm), Scaled(phrase, norm)
        self.location_norm, self.alike_norm, self.around_norm = Scaled(5, norm), Scaled(25, norm), Scaled(5, norm)
        self.look, self.look_bn = nn.Linear(low + high, width), nn.BatchNorm1d(width)
        self.attributes = nn.Sequential(nn.Dropout(config.visual_dropout), nn.Linear(width, attributes)) if attributes else None
        self.focus = nn.Sequential(nn.Linear(high + width + phrase, width), nn.Tanh(), nn.Linear(width, 1))
        self.place, self.around = nn.Linear(30, width), nn.Linear(high + 5, width)
        self.subject = Matching(high + width, phrase, width, config.match_dropout)
        self.location = Matching(width, phrase, width, config.match_dropout)
        self.relation = Matching(width, phrase, width, config.match_dropout)

    def visual_levels(self, frames: torch.Tensor) -> torch.Tensor:
        return pack(self.branch(frames)[-2:])

    def see(self, levels, places: Places, candidates: torch.Tensor) -> dict:
        """What the three modules see of regions, whatever is said of them.

        levels as packed maps [B, N]; places of R regions an image, every tensor [B, R, ...]; candidates [B, P, 4] corners in 0..1 of the
        frame, to which `places.context` points. Of the subject: cells [B, R, K * K, D] and attributes [B, R, A]; of the place
        [B, R, D]; of the R regions' neighbours [B, R, 5, D] and whether there are such.
        """
        low, high = unpack(levels.float(), self.scales[-2:])
        side = self.config.side
        fine, coarse = self.low_norm(read_regions(low, places.regions, side)), self.high_norm(read_regions(high, places.regions, side))
        look = self.look(torch.cat([fine, coarse], -1))
        look = F.relu(self.look_bn(look.flatten(0, 2)).view_as(look))
        named = self.attributes(look.mean(2)) if self.attributes is not None else None
        context, there = places.context.clamp(min=0), places.context != NONE
        pooled = read_regions(high, candidates, side).mean(2)
        neighbours = pooled[torch.arange(len(pooled), device=pooled.device)[:, None, None], context]
        around = self.around(torch.cat([self.context_norm(neighbours), self.around_norm(places.context_location)], -1))
        place = self.place(torch.cat([self.location_norm(places.location), self.alike_norm(places.alike)], -1))
        return {"cells": torch.cat([coarse, self.look_norm(look)], -1), "attributes": named, "place": place, "around": around, "there": there}

    def say(self, ids, mask) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """How much each module counts [B, 3], and the phrase [B, E] that each reads."""
        read = self.language(ids, mask)
        return self.balance(read.vector).float().softmax(-1), [phrase(read.states, read.embedded, mask) for phrase in self.phrases]

    def score(self, seen: dict, said) -> torch.Tensor:
        """[B, R] the match of every region with its image's expression, in -1..1."""
        balance, (subject, location, relation) = said
        cells = seen["cells"]
        asked = self.phrase_norm(subject)[:, None, None].expand(*cells.shape[:3], -1)
        weights = self.focus(torch.cat([cells, asked], -1)).float().softmax(2)
        found = self.subject((weights * cells).sum(2), subject), self.location(seen["place"], location)
        # a neighbour that is not there matches with 0, as in the released network
        related = (self.relation(seen["around"], relation) * seen["there"]).amax(2)
        return (torch.stack([*found, related], -1) * balance[:, None]).sum(-1)


def read_regions(maps: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """The maps [B, C, H, W] at the centres of side x side cells of boxes [B, R, 4] (0..1), bilinear: [B, R, side * side, C]."""
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    y, x = (c.flatten() for c in torch.meshgrid(at, at, indexing="ij"))
    points = boxes[..., None, :2] + torch.stack([x, y], -1) * (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    found = F.grid_sample(maps.float(), (points.flatten(1, 2)[:, :, None] * 2 - 1).float(), padding_mode="border", align_corners=False)
    return found.squeeze(-1).transpose(1, 2).unflatten(1, (boxes.shape[1], -1))


def ranking_loss(right: torch.Tensor, wrong: torch.Tensor, margin: float) -> torch.Tensor:
    """max(0, margin + wrong - right), elementwise."""
    return (margin + wrong - right).clamp(min=0)


class MAttNetGrounder(WordGrounder):
    """`stages.Grounder` by a `MAttNetNetwork`."""

    name = "mattnet"

    def __init__(self, config: MAttNetConfig, accelerator, work: Path):
        super().__init__(config, accelerator, work)
        self.detector, self.known = None, {}
        self.attributes: dict[str, float] = {}  # learned words and the weight of each in the loss

    def _network(self) -> MAttNetNetwork:
        branch = map_branch(self.config.visual, self.config.image_size)
        if len(branch.scales) < 2:
            raise CpgrError(f"the visual branch {self.config.visual!r} has one map; MAttNet reads two")
        return MAttNetNetwork(self.config, branch, len(self.words), len(self.attributes))

    def _keep_words(self, folder: Path) -> None:
        super()._keep_words(folder)
        (folder / ATTRIBUTES).write_text(json.dumps(self.attributes, ensure_ascii=False), encoding="utf-8")

    def _restore(self, folder: Path) -> nn.Module:
        self.attributes = json.loads((folder / ATTRIBUTES).read_text(encoding="utf-8"))
        return super()._restore(folder)

    def fit(self, labels, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        rows = [row for row in labels.kept if row.box is not None]
        if self.network is None or not self.config.warm_start:
            found = {row.image_id: images[row.image_id] for row in rows}
            counts = Counter(word for row in self._proposed(found) for word in row.attributes)
            self.attributes = _weights(counts.most_common(self.config.attributes))
        super().fit(labels, images, work, validate, length)

    # -- regions ----------------------------------------------------------------------------------------------

    def _proposed(self, images: Images) -> list[Label]:
        if self.detector is None:
            self.detector = build_detector(self.config.proposals, self.config.detection)
        missing = {image_id: image for image_id, image in images.items() if image_id not in self.known}
        if missing:
            table = propose(self.detector, Split("", missing), self.config.detection)
            self.known.update((image_id, list(rows)) for image_id, rows in table.by_image().items())
        return [row for image_id in images for row in self.known[image_id]]

    def candidates(self, images: Sequence[Image]) -> list[Candidates]:
        """The regions of each image that the model chooses among."""
        self._proposed({image.image_id: image for image in images})
        return [Candidates.of(image, self.known[image.image_id], self.size) for image in images]

    def _examples(self, rows: list[Label], images: Images) -> Ranked:
        return Ranked(rows, images, self)

    def _run(self, queries: Sequence[Query], attend: bool, what: str):
        self._proposed({q.image.image_id: q.image for q in queries})  # of all at once: several processes share the work
        return super()._run(queries, attend, what)

    def _query_batch(self, queries: Sequence[Query]) -> dict:
        unique = {q.image.image_id: q.image for q in queries}
        made = dict(zip(unique, self.candidates(list(unique.values())), strict=True))
        regions = collate_places([made[q.image.image_id].places for q in queries])
        device = self.accelerator.device
        return {**super()._query_batch(queries), **{name: value.to(device) for name, value in regions.items()}}

    # -- answers and losses -----------------------------------------------------------------------------------

    def _output(self, batch: dict, attend: bool) -> dict:
        """For queries the best candidate; for a training batch the scores that the ranking losses compare."""
        network, places = self.network, Places(*(batch[name] for name in Places.__dataclass_fields__))
        said = network.say(batch["word_ids"], batch["word_mask"])
        if "negative_ids" in batch:
            seen = network.see(batch["levels"], places, batch["candidates"])
            first = {name: value[:, :1] for name, value in seen.items() if value is not None}
            other = network.score(first, network.say(batch["negative_ids"], batch["negative_mask"]))
            return {"scores": network.score(seen, said), "other": other[:, 0], "attributes": seen["attributes"]}
        seen = network.see(batch["levels"], places, batch["regions"])
        scores = network.score(seen, said).masked_fill(~batch["there"], float("-inf"))
        chance = (scores / self.config.margin).softmax(-1)
        score, best = chance.max(-1)
        output = {"boxes": batch["regions"][torch.arange(len(best), device=best.device), best], "score": score, "scores": scores}
        if attend:
            covered = cell_coverage(batch["regions"].flatten(0, 1), 1.0, network.grid).view(*chance.shape, -1)
            spread = covered / covered.sum(-1, keepdim=True).clamp(min=1e-12)
            output["attention"] = (chance[..., None] * spread).sum(1)
            output["attention"] = output["attention"] / output["attention"].sum(-1, keepdim=True).clamp(min=1e-12)
        return output

    def losses(self, output: dict, batch: dict) -> dict:
        """Ranking of the region and of the expression, and the region's attributes; means over the batch."""
        config, scores = self.config, output["scores"]
        rival = batch["rival"]
        visual = ranking_loss(scores[:, :1], scores[:, 1:], config.margin) * rival
        losses = {
            "visual": config.visual_rank * (visual.sum(1) / rival.sum(1).clamp(min=1)).mean(),
            "language": config.language_rank * ranking_loss(scores[:, 0], output["other"], config.margin).mean(),
        }
        if output["attributes"] is not None:
            weight = torch.tensor(list(self.attributes.values()), device=scores.device)
            told, known = batch["attributes"], batch["attributes"].any(1).float()
            each = F.binary_cross_entropy_with_logits(output["attributes"][:, 0].float(), told, weight, reduction="none").mean(1)
            losses["attributes"] = config.loss_attributes * (each * known).sum() / known.sum().clamp(min=1)
        return {**losses, "loss": sum(losses.values())}


def _weights(counts: Sequence[tuple[str, int]], most: float = 10.0) -> dict[str, float]:
    """Attribute words with their weight in the loss: 1 for the most frequent, 10 for the rarest, linear in count^-1/2."""
    rare = {word: count**-0.5 for word, count in counts}
    low, high = min(rare.values(), default=0.0), max(rare.values(), default=0.0)
    return {word: 1 + (most - 1) * (value - low) / (high - low) if high > low else 1.0 for word, value in rare.items()}


def collate_places(places: Sequence[Places]) -> dict[str, torch.Tensor]:
    """Regions of several images side by side, [B, R, ...] by field name, and `there` [B, R] where there is one."""
    longest = max(len(p.regions) for p in places)

    def padded(values: Sequence[torch.Tensor], fill: float = 0.0) -> torch.Tensor:
        return torch.stack([torch.cat([v, v.new_full((longest - len(v), *v.shape[1:]), fill)]) for v in values])

    out = {name: padded([getattr(p, name) for p in places], NONE if name == "context" else 0) for name in Places.__dataclass_fields__}
    return {**out, "there": torch.arange(longest) < torch.tensor([len(p.regions) for p in places])[:, None]}


class Ranked(Examples):
    """Labels with what they are ranked against: other regions and other expressions of the same image.

    Negatives are drawn from (seed, batch) alone, so a training that is resumed draws the same.
    """

    def __init__(self, rows: Sequence[Label], images: Images, grounder: MAttNetGrounder):
        super().__init__(rows, images, grounder)
        self.seed, config = torch.initial_seed(), grounder.config
        by_image = {image.image_id: image for image in self.images}
        made = dict(zip(by_image, grounder.candidates(list(by_image.values())), strict=True))
        self.candidates = [made[row.image_id] for row in rows]
        self.places: list[Places] = []
        self.rivals: list[tuple[list[int], list[int]]] = []  # candidates of the label's category, and of others
        self.told = torch.zeros(len(rows), len(grounder.attributes))
        self.categories: list[str] = []
        number = {word: i for i, word in enumerate(grounder.attributes)}
        for index, (row, found) in enumerate(zip(rows, self.candidates, strict=True)):
            box = torch.tensor([row.box], dtype=torch.float32)
            iou = box_iou(box, found.boxes)[0]
            best = int(iou.argmax())
            matched = iou[best] >= SAME_OBJECT
            category = found.categories[best] if matched else row.category
            if matched and config.positive == "candidate":
                box = found.boxes[best : best + 1]
            self.categories.append(category)
            self.places.append(found.place(box, [category]))
            apart = (iou < SAME_OBJECT).nonzero().flatten().tolist()
            same = [i for i in apart if found.categories[i] == category]
            self.rivals.append((same, [i for i in apart if found.categories[i] != category]))
            for word in found.attributes[best] if matched else row.attributes:
                if word in number:
                    self.told[index, number[word]] = 1.0
        self.others = self._other_expressions(rows)

    def _other_expressions(self, rows: Sequence[Label]) -> list[tuple[list[int], list[int]]]:
        """For each label the labels of its image that name another object, of its category and of others."""
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.image_id, []).append(index)
        out: list[tuple[list[int], list[int]]] = [([], []) for _ in rows]
        for group in groups.values():
            boxes = torch.tensor([rows[i].box for i in group], dtype=torch.float32)
            apart = (box_iou(boxes, boxes) < SAME_OBJECT).tolist()
            for a, i in enumerate(group):
                for b, j in enumerate(group):
                    if apart[a][b]:
                        out[i][self.categories[i] != self.categories[j]].append(j)
        return out

    def batch(self, indices: list[int]) -> dict:
        config, rng = self.grounder.config, random.Random(f"{self.seed} {indices}")
        places, rival, negative = [], [], []
        for i in indices:
            chosen = [self._draw(rng, *self.rivals[i]) for _ in range(config.negatives)]
            parts = [self.places[i], *(self.candidates[i].places.take([c]) if c is not None else self.places[i] for c in chosen)]
            places.append(Places.cat(parts))
            rival.append([c is not None for c in chosen])
            other = self._draw(rng, *self.others[i])
            negative.append((i + 1 + rng.randrange(len(self) - 1)) % len(self) if other is None else other)
        base, pick = super().batch(indices), torch.tensor(negative)
        regions = collate_places(places)
        regions.pop("there")
        return {
            **base, **regions, "candidates": collate_places([self.candidates[i].places for i in indices])["regions"],
            "rival": torch.tensor(rival, dtype=torch.float32).view(len(indices), -1), "attributes": self.told[indices],
            "negative_ids": self.word_ids[pick], "negative_mask": self.word_mask[pick],
        }  # fmt: skip

    def _draw(self, rng: random.Random, same: list[int], different: list[int]) -> int | None:
        """One of the two lists' entries; `same` with the configured chance."""
        if same and (not different or rng.random() < self.grounder.config.same_category):
            return rng.choice(same)
        return rng.choice(different) if different else None
