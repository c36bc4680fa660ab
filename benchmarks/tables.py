"""Results as JSON and as a Markdown table."""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    """What the figures hold for."""
    from cpgr_kernels import build_info

    cpu = build_info()["cpu"]
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "instructions": cpu.get("isa", "no C++ kernels"),
        "load at the start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device == "cuda":
        del facts["instructions"]
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_markdown(rows: list[dict[str, Any]], setting: dict[str, Any], roofline: dict[str, float]) -> str:
    """A table with a line for each peer; milliseconds are medians, MB the most memory that a call adds."""
    facts = ", ".join(f"{name} {value}" for name, value in setting.items())
    lines = [
        f"Medians in ms, runs interleaved in one process; {facts}. "
        f"Measured roofline: copy {roofline['gigabytes_per_second']:.0f} GB/s, "
        f"matrix product {roofline['gigaflops_per_second']:.0f} GFLOP/s.",
        "",
        "| op | case | ours, ms | % of roofline | MB | peer | peer, ms | peer, MB | ratio | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += list(_table_rows(rows, roofline))
    return "\n".join(lines) + "\n"


def percent_of_roofline(row: dict[str, Any], roofline: dict[str, float]) -> float | None:
    """The time that the least bytes or the least operations would take, over ours; None where a case counts neither."""
    shares = [row[unit] / roofline[unit] for unit in roofline if row[unit]]
    return 100 * max(shares) if shares else None


def _table_rows(rows: list[dict[str, Any]], roofline: dict[str, float]) -> Iterator[str]:
    for row in rows:
        ours = next(iter(row["milliseconds"]))
        share = percent_of_roofline(row, roofline)
        start = f"| {row['op']} | {row['case']} | {_short(row['milliseconds'][ours])} | "
        start += f"{'' if share is None else f'{share:.0f}'} | {_megabytes(row['peak_bytes'][ours])} | "
        for peer, ratio in row["ratio"].items():
            goal = row["goals"].get(peer)
            verdict = "" if goal is None else f"{goal:g}x {'met' if ratio >= goal else 'NOT met'}"
            yield (
                f"{start}{peer} | {_short(row['milliseconds'][peer])} | {_megabytes(row['peak_bytes'][peer])} "
                f"| {ratio:.3g}x | {verdict} |"
            )
        for peer, reason in row["missing"].items():
            yield f"{start}{peer} | not run: {reason} | | | |"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.4f}" if milliseconds < 1 else f"{milliseconds:.3g}"


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"


def write(folder: Path, rows: list[dict[str, Any]], setting: dict[str, Any], roofline: dict[str, float]) -> Path:
    """`<machine>.json` and `<machine>.md`; returns the first. Cases that were measured before and are not in `rows` stay,
    each under the run that measured it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{setting['device']} {setting['threads']} threads".lower()).strip("-")
    path = folder / f"{name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    new = {(row["op"], row["case"]) for row in rows}
    for run in runs:
        run["rows"] = [row for row in run["rows"] if (row["op"], row["case"]) not in new]
    same = next((run for run in runs if run["machine"] == setting and run["roofline"] == roofline), None)
    if same is None:
        runs.append(same := {"machine": setting, "roofline": roofline, "rows": []})
    same["rows"] += rows
    runs = [run for run in runs if run["rows"]]
    _replace(path, json.dumps({"runs": runs}, indent=1) + "\n")
    tables = [as_markdown(run["rows"], run["machine"], run["roofline"]) for run in runs]
    _replace(path.with_suffix(".md"), "\n".join(tables))
    return path


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)
