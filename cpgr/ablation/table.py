"""The study's figures: read from the runs' folders, put together as Markdown, JSON and a plot."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..report.folder import cycle_folders, read_config

# 97.5 % points of Student's t by degrees of freedom, for a 95 % interval of a mean
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


@dataclass
class Result:
    """A finished run: accuracy by split, quality of the last cycle's labels, and what its trainings took."""

    accuracy: dict[str, float]
    labels: dict[str, float | None]
    texts: dict[str, dict]
    seconds: float
    grounding_seconds: float
    grounding_steps: int
    cycles: int = 1

    @property
    def mean(self) -> float:
        """Mean Acc@0.5 of the evaluated splits."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass
class Interval:
    """A mean and the half width of its 95 % t-interval over seeds; nan where one seed gives none."""

    mean: float
    half: float
    values: list[float] = field(default_factory=list)


def interval(values: list[float]) -> Interval:
    """Mean and 95 % t-interval."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, math.nan, list(values))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    t = T[count - 2] if count - 2 < len(T) else 1.96
    return Interval(mean, t * deviation / math.sqrt(count), list(values))


def read_result(root: Path) -> Result | None:
    """The run's last cycle, if the run is finished; None where it is not or there is none."""
    if not (root / "config.yaml").exists():
        return None
    wanted, folders = read_config(root).get("cycles", 1), cycle_folders(root)
    last = folders.get(wanted)
    if last is None or not (last / "metrics.json").exists():
        return None
    metrics = json.loads((last / "metrics.json").read_text())
    accuracy = {k: v["acc@0.5"] for k, v in metrics.items() if isinstance(v, dict) and v.get("acc@0.5") is not None}
    trained = {"generation": [0.0, 0], "grounding": [0.0, 0]}
    for at in folders.values():
        for part, total in trained.items():
            for path in (at / part).rglob("history.json"):  # with cross-fitting, one a fold
                history = json.loads(path.read_text())
                total[0] += history.get("seconds", 0.0)
                total[1] += history.get("steps", 0)
    seconds = sum(total[0] for total in trained.values())
    return Result(accuracy, metrics.get("labels", {}), metrics.get("texts") or {}, seconds, *trained["grounding"], cycles=wanted) if accuracy else None


def write_tables(arms, seeds, results: dict[str, dict[int, Result]], same: dict[str, str], failed, out: Path) -> None:
    """ablation.json, ablation.md and ablation.png in `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [_row(arm, results.get(arm.name, {}), results.get("base", {}), same) for arm in arms]
    rows = [row for row in rows if row]
    _write(out / "ablation.json", json.dumps(_plain({
        "seeds": seeds, "arms": rows, "failed": failed,
        "runs": {name: {seed: asdict(result) for seed, result in found.items()} for name, found in results.items()},
    }), indent=1) + "\n")  # fmt: skip
    _write(out / "ablation.md", _markdown(rows, seeds, failed))
    if rows:
        _plot(rows, out / "ablation.png")


def _row(arm, found: dict[int, Result], base: dict[int, Result], same) -> dict | None:
    if not found:
        return None
    splits = list(next(iter(found.values())).accuracy)
    pairs = [seed for seed in found if seed in base]
    quality = {}
    for name, read in (
        ("pairing_hit_rate", lambda r: r.labels.get("pairing_hit_rate")),
        ("centrality", lambda r: r.texts.get("all", {}).get("after", {}).get("centrality")),
        ("discrimination", lambda r: r.texts.get("all", {}).get("after", {}).get("discrimination")),
        ("written_centrality", lambda r: r.texts.get("generated", {}).get("after", {}).get("centrality")),
        ("written_discrimination", lambda r: r.texts.get("generated", {}).get("after", {}).get("discrimination")),
    ):
        values = [v for v in map(read, found.values()) if v is not None]
        quality[name] = asdict(interval(values)) if values else None
    return {
        "arm": arm.name, "group": arm.group, "meaning": arm.meaning, "same_as": same.get(arm.name, ""), "seeds": list(found),
        "splits": {s: asdict(interval([r.accuracy[s] for r in found.values()])) for s in splits},
        "mean": asdict(interval([r.mean for r in found.values()])),
        "difference": asdict(interval([found[s].mean - base[s].mean for s in pairs])) if pairs and arm.name != "base" else None,
        "seconds": sum(r.seconds for r in found.values()) / len(found), **quality,
    }  # fmt: skip


def _plain(value):
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(found: dict | None, sign: str = "") -> str:
    if not found:
        return "–"
    half = "" if math.isnan(found["half"]) else f" ± {100 * found['half']:.1f}"
    return f"{100 * found['mean']:{sign}.1f}{half}"


def _markdown(rows: list[dict], seeds, failed) -> str:
    splits = list(dict.fromkeys(split for row in rows for split in row["splits"]))
    head = ["arm", *splits, "mean", "minus base, paired", "pairing hit", "texts true / unique", "written true / unique", "training s", "seeds"]
    lines = [
        "# Ablation", "",
        f"Acc@0.5 in percent, mean and 95 % t-interval over the seeds {', '.join(map(str, seeds))}; one seed has no interval. "
        "The difference is by seed, then averaged. Texts: those that Filtering kept in the last cycle (Region-Centrality / "
        "Reference-Discrimination).", "",
    ]  # fmt: skip
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [f"## {group.capitalize()}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for row in (r for r in rows if r["group"] == group):
            texts = [
                f"{_percent(row[a])} / {_percent(row[b])}" if row[a] else "–"
                for a, b in (("centrality", "discrimination"), ("written_centrality", "written_discrimination"))
            ]
            difference = "is the base" if row["same_as"] else _percent(row["difference"], "+")
            name = f"**{row['arm']}**: {row['meaning']}"
            cells = [name, *(_percent(row["splits"].get(s)) for s in splits), _percent(row["mean"]), difference, _percent(row["pairing_hit_rate"]), *texts]
            lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}", str(len(row["seeds"]))]) + " |")
        lines.append("")
    lines += [f"- failed: {name}, seed {seed}: {why}" for name, seed, why in failed]
    return "\n".join(lines).rstrip() + "\n"


def _plot(rows: list[dict], path: Path) -> None:
    """Mean accuracy of every arm with its interval, the base's as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.7 + 0.24 * len(rows)))
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(row["group"] for row in rows))}
    for y, row in enumerate(rows):
        mean, half = 100 * row["mean"]["mean"], row["mean"]["half"]
        axis.errorbar(mean, y, xerr=None if math.isnan(half) else 100 * half, fmt="o", color=colours[row["group"]], capsize=2, markersize=4)
        axis.plot([100 * v for v in row["mean"]["values"]], [y] * len(row["mean"]["values"]), "|", color=colours[row["group"]], alpha=0.5)
    base = next((row for row in rows if row["arm"] == "base"), None)
    if base:
        axis.axvline(100 * base["mean"]["mean"], color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("Acc@0.5, mean of the evaluated splits, %; bars: 95 % t-interval over seeds")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=130)
    plt.close(figure)
    os.replace(temporary, path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
