"""RefCLIP's network: a frozen detector's most confident cells and expressions in one space, and the training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from cpgr_kernels import anchor_contrast
from torch import nn
from torch.utils.checkpoint import checkpoint

from ... import processes
from ...language import LanguageEncoder
from .settings import AnchorConfig
from .sources import Cells


class AnchorNetwork(nn.Module):
    """Cells -> anchors, word numbers -> expressions; their products say which anchor an expression names."""

    def __init__(self, config: AnchorConfig, detector: nn.Module, words: int, word_width: int | None = None):
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.fusion = detector.fusion(config.fusion_width)
        self.language = LanguageEncoder(config.language, words, word_width)
        self.anchor_projection = nn.Linear(self.fusion.width, config.width)
        self.expression_projection = nn.Linear(config.language.width, config.width)

    def anchors(self, maps: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        """Features of the chosen cells: maps [B, ...], chosen [B, K] -> [B, K, width]."""
        return self.anchor_projection(self.fusion(maps, chosen))

    def expressions(self, ids: torch.Tensor) -> torch.Tensor:
        """Word numbers [Q, T] -> [Q, width]."""
        return self.expression_projection(self.language(ids)[1])


def choose_cells(mean: torch.Tensor, count: int, always: torch.Tensor | None = None) -> torch.Tensor:
    """The `count` cells whose boxes are the most confident on average, [B, count] ascending (the published order).

    mean [B, N]; `always` [B] names a cell that is chosen whatever its confidence (-1: none).
    """
    if always is not None:
        at = torch.arange(mean.shape[1], device=mean.device)
        mean = mean.masked_fill(at == always[:, None], float("inf"))
    return mean.topk(count, dim=1).indices.sort(dim=1).values


class ContrastStep(nn.Module):
    """A training step: RefCLIP's loss of a batch, and RefCLIP++'s within the image where targets are known."""

    def __init__(self, network: AnchorNetwork, config: AnchorConfig):
        super().__init__()
        self.network, self.config = network, config

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.detector_norm == "eval":
            self.network.detector.eval()
        return self

    def forward(self, batch: dict) -> dict:
        """batch: `cells` or `frames` of U images; `place` [Q] the image of each expression, `ids` [Q, T], `numbers` [U] that
        tell images apart over all processes; `targets` [Q] cells or -1, `trust` [Q] their weights; `whole`, the size of the batch that
        processes share.

        Every expression brings its image, so an image of several expressions counts as often, as published.
        """
        config, place = self.config, batch["place"]
        cells = batch["cells"] if "cells" in batch else self._look(batch["frames"])
        targets = batch.get("targets")
        if targets is None:
            chosen = choose_cells(cells.mean, config.anchors)
            anchors = self._anchors(cells.maps, chosen)[place]
        else:  # an image's anchors hang on the expression where a target is among them
            chosen = choose_cells(cells.mean[place], config.anchors, targets)
            anchors = self._anchors(tuple(m[place] for m in cells.maps), chosen)
        anchors, expressions = anchors.float(), self.network.expressions(batch["ids"]).float()
        losses = {"contrast": contrast(anchors, expressions, batch["numbers"][place], config, batch.get("whole"))}
        if targets is not None and config.in_image:
            losses["in_image"] = in_image(anchors, expressions, (chosen == targets[:, None]), batch["trust"])
        return {**losses, "loss": losses["contrast"] + config.in_image * losses.get("in_image", 0.0)}

    def _look(self, frames: torch.Tensor) -> Cells:
        with torch.no_grad():
            return self.network.detector(frames)

    def _anchors(self, maps: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        size = self.config.recompute
        if not size or len(chosen) <= size:
            return self.network.anchors(maps, chosen)
        parts = []
        for part, *some in zip(chosen.split(size), *(m.split(size) for m in maps), strict=True):
            again = lambda: (nullcontext(), _still(self.network.fusion))  # noqa: E731
            parts.append(checkpoint(self.network.anchors, tuple(some), part, use_reentrant=False, context_fn=again))
        return torch.cat(parts)


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Batch norms whose running statistics do not move: the same batch must not count twice."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    rates = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate


def contrast(
    anchors: torch.Tensor, expressions: torch.Tensor, numbers: torch.Tensor, config: AnchorConfig, whole: int | None = None
) -> torch.Tensor:
    """RefCLIP's loss (section 3.3): anchors [Q, K, D] of the image of each expression [Q, D], numbers [Q] of the images.

    `whole` is the size of a batch whose rows several processes share: the anchors of all are then negatives, and the mean over
    processes is the loss of the whole batch.
    """
    positive = None
    if config.gather and whole is not None and processes.count() > 1:
        own = processes.own_rows(whole)
        positive = torch.arange(own.start, own.stop, device=anchors.device)
        anchors, numbers = processes.gathered(anchors, whole), processes.gathered(numbers, whole)
    return anchor_contrast(
        anchors, expressions, positive=positive, image_ids=numbers if config.same_image == "masked" else None,
        negatives_per_image=config.negatives_per_image, temperature=config.temperature, normalize=config.normalize,
    )  # fmt: skip


def own_scores(anchors: torch.Tensor, expressions: torch.Tensor) -> torch.Tensor:
    """Products of expression q and the anchors of its own image: [Q, K, D], [Q, D] -> [Q, K]."""
    return (anchors @ expressions[..., None]).squeeze(-1)


def in_image(anchors: torch.Tensor, expressions: torch.Tensor, target: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """RefCLIP++'s contrast within the image: cross entropy of the target among its image's anchors, weighted by `trust`.

    target [Q, K] is True at one anchor of a row, or nowhere in a row that does not count.
    """
    known = target.any(1)
    losses = F.cross_entropy(own_scores(anchors, expressions), target.long().argmax(1), reduction="none")
    return (losses * trust * known).sum() / known.sum().clamp(min=1)
