"""The label table: what every stage hands to the next, one row an expression-region pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from .errors import DataError
from .processes import by_main

KINDS = ("dataset", "generated", "template", "phrase", "proposal")


@dataclass
class Label:
    """One expression-region pair. `box` is x1, y1, x2, y2 in pixels of the original image, or None.

    `region_id` is the index of the region among the image's proposals (-1: it is no proposal);
    `expression_id` names the data set's expression the text comes from (empty for made texts).
    A dropped label keeps its scores, `kept` is False and `reason` says why.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    box: list[float] | None = None
    mask: str | None = None  # COCO RLE or polygons, as JSON
    keypoints: list[float] | None = None  # x, y, visibility, ...
    expression: str = ""
    kind: str = "dataset"
    expression_id: str = ""
    region_id: int = -1
    category: str = ""
    attributes: list[str] = field(default_factory=list)
    spatial: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    cycle: int = 0
    kept: bool = True
    reason: str = ""

    def drop(self, reason: str, **scores: float) -> Label:
        return replace(self, kept=False, reason=reason, scores={**self.scores, **scores})

    def keep(self, **scores: float) -> Label:
        return replace(self, kept=True, reason="", scores={**self.scores, **scores})

    @property
    def words(self) -> str:
        """The detector's `[Spat] [Attr] [Cls]`, empty slots skipped (the Generation prefix)."""
        return " ".join([w for w in (self.spatial, *self.attributes, self.category) if w])


class LabelTable:
    """Rows of `Label`, in a fixed order, with Parquet in and out."""

    def __init__(self, rows: Iterable[Label] = ()):
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Label:
        return self.rows[index]

    def __add__(self, other: LabelTable) -> LabelTable:
        return LabelTable([*self.rows, *other.rows])

    def where(self, test: Callable[[Label], bool]) -> LabelTable:
        return LabelTable(row for row in self.rows if test(row))

    @property
    def kept(self) -> LabelTable:
        return self.where(lambda row: row.kept)

    def by_image(self) -> dict[str, LabelTable]:
        """Rows grouped by image, images in order of first appearance."""
        groups: dict[str, list[Label]] = {}
        for row in self.rows:
            groups.setdefault(row.image_id, []).append(row)
        return {image: LabelTable(rows) for image, rows in groups.items()}

    @by_main
    def save(self, path: str | Path) -> None:
        """Write Parquet, whole or not at all: to a temporary name beside `path`, then renamed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {f.name: [getattr(row, f.name) for row in self.rows] for f in fields(Label)}
        columns["scores"] = [sorted(scores.items()) for scores in columns["scores"]]
        table = pa.table(columns, schema=_schema(pa))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> LabelTable:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(path, "", f"is not a readable label table: {error}", "write it again with its step") from error
        missing = {f.name for f in fields(Label)} - set(table.column_names)
        if missing:
            raise DataError(path, "", f"lacks the columns {sorted(missing)}", "it is not a label table of this version")
        rows = table.select([f.name for f in fields(Label)]).to_pylist()
        for row in rows:
            row["scores"] = dict(row["scores"])
        return cls(Label(**row) for row in rows)


def _schema(pa):
    number, text = pa.float64(), pa.string()
    return pa.schema([
        ("image_id", text), ("file_name", text), ("width", pa.int64()), ("height", pa.int64()),
        ("box", pa.list_(number)), ("mask", text), ("keypoints", pa.list_(number)),
        ("expression", text), ("kind", text), ("expression_id", text), ("region_id", pa.int64()),
        ("category", text), ("attributes", pa.list_(text)), ("spatial", text),
        ("scores", pa.map_(text, number)), ("weight", number), ("cycle", pa.int64()),
        ("kept", pa.bool_()), ("reason", text),
    ])  # fmt: skip
