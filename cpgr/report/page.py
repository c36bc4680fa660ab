"""The page put together: header, sections, footer."""

from __future__ import annotations

from .. import __version__
from . import sections
from .cards import gallery
from .folder import RunFolder
from .style import CSS
from .text import safe, table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(run: RunFolder) -> str:
    """The report of a run as one HTML page."""
    name = safe(run.root.resolve().name)
    parts = {
        "Results": sections.headline(run),
        "Accuracy": sections.accuracy(run),
        "Labels": sections.label_quality(run),
        "Texts": sections.text_quality(run),
        "Dropped labels": sections.outcomes(run),
        "Gallery": gallery(run),
        "Losses": sections.losses(run),
        "Skipped records": _skipped(run),
        "Config": f"<details><summary>config.yaml</summary><pre>{safe(run.config_text)}</pre></details>",
        "Log": _log(run),
    }
    parts = {title: body for title, body in parts.items() if body}
    anchors = {title: title.lower().replace(" ", "-") for title in parts}
    links = "".join(f'<a href="#{anchors[title]}">{title}</a>' for title in parts)
    body = "".join(f'<section id="{anchors[title]}"><h2>{title}</h2>{content}</section>' for title, content in parts.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}, a cpgr run</title><style>{CSS}</style></head>'
        f"<body><header><h1>{name}</h1>{_state(run)}<nav>{links}</nav></header><main>{body}</main>"
        f"<footer>cpgr {safe(__version__)}</footer></body></html>\n"
    )


def _state(run: RunFolder) -> str:
    """What the run is and how far it came."""
    done, data = len(run.finished), run.config.get("data") or {}
    named = [data.get("format"), data.get("dataset")] if isinstance(data, dict) else []
    source = ", ".join(dict.fromkeys(str(name) for name in named if name))
    facts = [f"recipe {run.recipe}", f"seed {run.config.get('seed', '?')}", f"data {source}" if source else ""]
    chip = f'<b class="right">✓ finished, {done} cycles</b>'
    if not run.complete:
        running = next((c for c in run.cycles if not c.metrics), None)
        step = f"; cycle {running.number} is at: {running.next_step}" if running and running.next_step else ""
        chip = f'<b class="none">○ not finished: {done} of {run.wanted or "?"} cycles{step}</b>'
    problems = "".join(f'<p class="note">{safe(problem)}</p>' for problem in run.problems)
    return f'<p class="chips">{chip}{"".join(f"<span>{safe(fact)}</span>" for fact in facts if fact)}</p>{problems}'


def _skipped(run: RunFolder) -> str:
    counts = run.finished[-1].metrics.get("skipped", {}) if run.finished else {}
    listed = run.text("skipped.txt")
    rows = [[safe(problem), f"{count:,}"] for problem, count in sorted(counts.items(), key=lambda item: -item[1])]
    body = table(["problem", "records"], rows) if rows else ""
    return body + (f"<details><summary>Each of them</summary><pre>{safe(listed)}</pre></details>" if listed else "")


def _log(run: RunFolder) -> str:
    log = run.text("run.log")
    return f"<details><summary>run.log, its last lines</summary><pre>{safe(log)}</pre></details>" if log else ""
