"""Filtering: a pseudo expression stays if the grounding model's attention for it lies on its own region
(Reference-Discrimination; CPGR's figure, reconstruction F of reference section 2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from cpgr_kernels import box_iou, region_attention

from ..labels import Label
from ..regions import Frame


@dataclass
class FilterConfig:
    """Filtering.

    Attributes:
        enabled: Filter by attention from the second cycle on.
        gamma: Attention mass in a box is divided by its area to this power: 0 favours large boxes, 1 is density.
        power: Attention is raised to this power first (the other reading of the figure's superscript 3).
        inside: Least share of the attention inside the label's own region.
        margin: Least lead of the own region over the best other one, after the division, in shares of all regions.
        rivals: Which regions the own one must lead: `all`, or `category`, those of its own class alone (a region without
            such rivals leads by all it has).
        same_iou: Regions that overlap more than this count as the label's own.
        floor: `image`: an image that would lose every label keeps the one with the best margin; `region`: so does
            every region; `none`.
        gate: First cycle, where no attention exists: least ITM probability of the label's text on its crop (0: no
            gate; CPL uses 0.6 with BLIP's matcher).
    """

    enabled: bool = True
    gamma: float = 0.5
    power: float = 1.0
    inside: float = 0.0
    margin: float = 0.0
    rivals: str = "all"
    same_iou: float = 0.5
    floor: str = "image"
    gate: float = 0.6


def region_mass(maps: torch.Tensor, regions: list[Label], grid: int, size: int, mode: str, config: FilterConfig) -> torch.Tensor:
    """S: attention mass of each map in each region, over area ** gamma, as shares of all regions.

    maps [Q, grid * grid] of one image, its N regions with boxes in original pixels. Returns [Q, N], rows sum to 1.
    """
    first = regions[0]
    boxes = torch.tensor([row.box for row in regions], dtype=torch.float32)
    boxes = Frame(size, first.width, first.height, mode).to_frame(boxes)
    if config.power != 1:
        maps = maps**config.power
    # No box counts as smaller than a pixel.
    mass = region_attention(maps, boxes, (grid, grid), config.gamma, (size, size), least_area=1 / size**2)
    return mass / mass.sum(1, keepdim=True).clamp(min=1e-12)


def filter_labels(labels: list[Label], regions: list[Label], mass: torch.Tensor, inside: torch.Tensor, config: FilterConfig) -> list[Label]:
    """Keep or drop the labels of one image.

    mass [L, N] of `region_mass`, inside [L] the plain attention mass in each label's own region.
    """
    if not labels:
        return []
    boxes = torch.tensor([row.box for row in regions], dtype=torch.float32)
    place = {row.region_id: j for j, row in enumerate(regions)}
    own = torch.tensor([place[row.region_id] for row in labels])
    same = box_iou(boxes, boxes)[own] > config.same_iou
    same[torch.arange(len(labels)), own] = True
    best_own = mass.masked_fill(~same, -1).amax(1)
    out = same
    if config.rivals == "category":
        out = same | torch.tensor([[row.category != region.category for region in regions] for row in labels])
    best_other = mass.masked_fill(out, -1).amax(1).clamp(min=0)
    margin = best_own - best_other
    rows = []
    for label, lead, share in zip(labels, margin.tolist(), inside.tolist(), strict=True):
        scores = {"attention_margin": lead, "attention_inside": share}
        if lead < config.margin or lead <= 0:
            rows.append(label.drop("filtering: attention lies on another region", **scores))
        elif share < config.inside:
            rows.append(label.drop("filtering: too little attention on the region", **scores))
        else:
            rows.append(label.keep(**scores))
    return _floor(rows, config.floor)


def _floor(rows: list[Label], floor: str) -> list[Label]:
    """Keep the best-margin label where everything was dropped."""
    groups: Mapping = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.region_id if floor == "region" else 0, []).append(i)
    if floor != "none":
        for members in groups.values():
            if not any(rows[i].kept for i in members):
                best = max(members, key=lambda i: rows[i].scores["attention_margin"])
                rows[best] = rows[best].keep(floor=1.0)
    return rows
