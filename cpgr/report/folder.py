"""A run's folder, read for people: what is there is shown, what is missing or damaged is said."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CpgrError
from ..recipes import RECIPES

STAGES = ("generation", "refinement", "grounding")
# The order in which a cycle's artefacts appear, with what makes each.
STEPS = {
    "proposals.parquet": "proposals", "generation": "training the Generation model", "basic.parquet": "generating labels",
    "refined.parquet": "refining labels", "grounding": "training the Grounding model", "metrics.json": "evaluation",
}  # fmt: skip
_TAIL = 200


@dataclass
class CycleRecord:
    """What one cycle left behind. `metrics` is empty while it is not finished."""

    number: int
    folder: Path
    metrics: dict = field(default_factory=dict)
    histories: dict[str, dict] = field(default_factory=dict)
    gallery: list[dict] = field(default_factory=list)
    outcomes: Counter = field(default_factory=Counter)  # (is a pair, kept, reason) -> rows of refined.parquet

    @property
    def splits(self) -> dict[str, dict]:
        """The metrics of the evaluated splits, by name."""
        return {k: v for k, v in self.metrics.items() if isinstance(v, dict) and "acc@0.5" in v}

    @property
    def next_step(self) -> str:
        """The first step whose artefact is missing; empty for a finished cycle."""
        return next((what for name, what in STEPS.items() if not (self.folder / name).exists()), "")


@dataclass
class RunFolder:
    """A run's folder: its config and its cycles, finished or not."""

    root: Path
    config_text: str
    config: dict
    cycles: list[CycleRecord]
    problems: list[str]

    @property
    def recipe(self) -> str:
        return str(self.config.get("recipe") or RECIPES[0])

    @property
    def wanted(self) -> int:
        """How many cycles the run is to have; 0 where the config does not say."""
        wanted = self.config.get("cycles")
        return wanted if isinstance(wanted, int) else 0

    @property
    def finished(self) -> list[CycleRecord]:
        return [cycle for cycle in self.cycles if cycle.metrics]

    @property
    def complete(self) -> bool:
        return bool(self.finished) and len(self.finished) >= self.wanted

    def text(self, name: str) -> str:
        """The last lines of a text file of the folder, or nothing."""
        try:
            lines = (self.root / name).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL:])


def read_config(root: Path) -> dict:
    """The run's config. Raises CpgrError where the folder holds no run."""
    import yaml

    path = root / "config.yaml"
    if not path.is_file():
        raise CpgrError(f"{root} holds no run (no config.yaml); a run is started by `cpgr run --out {root}`")
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CpgrError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise CpgrError(f"{path} is not a run's config")
    return config


def cycle_folders(root: Path) -> dict[int, Path]:
    """The folders of the run's cycles by number, in order."""
    found = {int(m[1]): path for path in root.glob("cycle-*") if (m := re.fullmatch(r"cycle-(\d+)", path.name)) and path.is_dir()}
    return dict(sorted(found.items()))


def read_run(root: Path) -> RunFolder:
    """Everything the report shows. Raises CpgrError where the folder holds no run; a damaged file is a problem listed."""
    config = read_config(root)
    problems: list[str] = []
    cycles = [_read_cycle(number, folder, problems) for number, folder in cycle_folders(root).items()]
    return RunFolder(root, (root / "config.yaml").read_text(), config, cycles, problems)


def _read_cycle(number: int, folder: Path, problems: list[str]) -> CycleRecord:
    def read(name: str) -> dict:
        path = folder / name
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text())
            if isinstance(content, dict):
                return content
            problem = "is not a JSON object"
        except (OSError, ValueError) as error:
            problem = f"cannot be read: {error}"
        problems.append(f"{folder.name}/{name} {problem}")
        return {}

    histories = {stage: found for stage in STAGES if (found := read(f"{stage}/history.json"))}
    gallery = read("gallery.json").get("entries", [])
    return CycleRecord(number, folder, read("metrics.json"), histories, gallery, _outcomes(folder, problems))


def _outcomes(folder: Path, problems: list[str]) -> Counter:
    """Rows of the refined labels by fate. Three columns are read alone: the table of a large data set is long."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "refined.parquet"
    counts: Counter = Counter()
    if not path.exists():
        return counts
    try:
        table = pq.read_table(path, columns=["kind", "kept", "reason"])
        groups = table.group_by(["kind", "kept", "reason"]).aggregate([([], "count_all")]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{folder.name}/{path.name} cannot be read: {error}")
        return counts
    for group in groups:
        reason = re.sub(r"\bregion \d+ fits", "another region fits", group["reason"] or "")
        counts[group["kind"] == "dataset", group["kept"], reason] += group["count_all"]
    return counts
