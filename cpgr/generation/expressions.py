"""The data set's expressions as basic labels: the Generation stage of recipes that write no texts of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.records import Expression, Split
from ..labels import Label, LabelTable
from ..stages import Images


class DatasetExpressions:
    """`stages.Generator` that has nothing to learn: every expression of the split once, without a region."""

    def fit(self, labels: LabelTable, images: Images, work: Path) -> None:
        pass

    def generate(self, split: Split, proposals: LabelTable) -> LabelTable:
        """Rows of kind "dataset" in the split's order; which region each names is for Refinement to find."""
        rows = []
        for expression in split.expressions:
            image = split.images[expression.image_id]
            rows.append(
                Label(
                    image.image_id, image.file_name, image.width, image.height, expression=expression.text,
                    expression_id=expression.expression_id,
                )
            )  # fmt: skip
        return LabelTable(rows)

    def match(self, images: Images, labels: LabelTable) -> list[float]:
        """People wrote them of their images: all are taken for true."""
        return [1.0] * len(labels)

    def judge(self, images: Images, proposals: LabelTable, expressions: Sequence[Expression], scores: Sequence[str] = ()) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"generator": "dataset"}))

    def load(self, folder: Path) -> None:
        pass
