"""The report's sections on numbers: headline, accuracy, label quality, what was dropped, losses."""

from __future__ import annotations

from .cards import spread
from .charts import KINDS, Series, legend, line_chart
from .folder import STAGES, CycleRecord, RunFolder
from .text import UNKNOWN, decimal, interval, known, percent, points, safe, table, tick_percent

QUALITY = {
    "keep_rate": ("kept by Filtering", "pseudo expressions that Filtering kept"),
    "basic_precision": ("precision before Filtering", "pseudo expressions that are true of their region and of no other object of the image"),
    "filter_precision": ("precision after Filtering", "the same, of those that Filtering kept"),
    "pairing_hit_rate": ("pairing hit rate", "training expressions whose chosen region has an IoU of at least 0.5 with the true box"),
    "proposal_recall": ("proposal recall", "the same for the best proposal: the most that pairing can reach"),
}
TEXT_KINDS = {"all": "all made texts", "generated": "texts the model wrote", "template": "templates"}
TEXT_QUALITY = {
    "centrality": ("Region-Centrality", "share that is true of its region"),
    "discrimination": ("Reference-Discrimination", "share that is true of its region and of no other object of the image"),
}
CHOICES = {
    "largest": "the largest region", "best_scored": "the region the detector is surest of", "named_class": "a region of the named class",
    "random": "any region",
}  # fmt: skip
_NOT_CHOSEN = "pairing: another region fits better"


def headline(run: RunFolder) -> str:
    """Accuracy of the last finished cycle by split, and the quality of its labels."""
    if not run.finished:
        return "<p>No cycle is finished yet, so nothing is measured.</p>"
    first, last = run.finished[0], run.finished[-1]
    tiles = "".join(_accuracy_tile(name, found, first) for name, found in last.splits.items())
    teacher = ", ".join(f"{safe(name)} {percent(found.get('acc@0.5'))}" for name, found in last.metrics.get("teacher", {}).items())
    labels = last.metrics.get("labels", {})
    quality = "".join(
        f'<div class="tile small"><h3>{safe(QUALITY[key][0])}</h3><p class="big">{percent(labels.get(key))}</p>'
        f"<p>{_since(labels, first, last, key)}</p></div>"
        for key in ("pairing_hit_rate", "filter_precision", "proposal_recall")
        if known(labels.get(key))
    )
    said = f"<p>Acc@0.5 of the teacher itself in cycle {last.number}: {teacher}.</p>" if teacher else ""
    return "".join(f'<div class="tiles">{some}</div>' for some in (tiles, quality) if some) + said


def _accuracy_tile(name: str, found: dict, first: CycleRecord) -> str:
    value, count = found.get("acc@0.5"), found.get("count") or 0
    if not known(value) or not count:
        return f'<div class="tile"><h3>{safe(name)}</h3><p class="big none">{UNKNOWN}</p><p>no true boxes</p></div>'
    low, high = interval(value, count)
    start = first.splits.get(name, {}).get("acc@0.5")
    later = known(start) and found is not first.splits[name]
    change = f"<p><b>{points(value - start)}</b> since cycle {first.number}</p>" if later else ""
    return (
        f'<div class="tile"><h3>{safe(name)}</h3><p class="big">{percent(value)}</p>'
        f"<p>Acc@0.5, 95 % interval {100 * low:.0f} to {100 * high:.0f}</p>"
        f"<p>mean IoU {decimal(found.get('mean_iou'))}, {count:,} expressions</p>{change}</div>"
    )


def _since(labels: dict, first: CycleRecord, last: CycleRecord, key: str) -> str:
    start = first.metrics.get("labels", {}).get(key)
    if first is last or not known(start):
        return f"in cycle {last.number}"
    if labels[key] == start:
        return f"as in cycle {first.number}"
    return f"<b>{points(labels[key] - start)}</b> since cycle {first.number}"


def accuracy(run: RunFolder) -> str:
    """Accuracy and mean IoU by cycle and split: charts, and the numbers."""
    names = list(dict.fromkeys(name for cycle in run.finished for name in cycle.splits))
    if not names:
        return ""

    def lines(key: str) -> list[Series]:
        return [Series(n, [(c.number, c.splits.get(n, {}).get(key)) for c in run.finished], i) for i, n in enumerate(names)]

    forms = {"acc@0.5": ("Acc@0.5", tick_percent), "mean_iou": ("Mean IoU", "{:.3g}".format)}
    charts = [
        (name, line_chart(lines(key), title=f"{name} by cycle and split", form=form, whole_x=True, x_label="cycle"))
        for key, (name, form) in forms.items()
    ]
    rows = [[f"cycle {c.number}", *(_both(c.splits.get(n, {})) for n in names)] for c in run.finished]
    return _figures(charts) + table(["Acc@0.5, mean IoU", *names], rows)


def _both(found: dict) -> str:
    value = found.get("acc@0.5")
    return f"{percent(value)} <small>{decimal(found.get('mean_iou'))}</small>" if known(value) else UNKNOWN


def label_quality(run: RunFolder) -> str:
    """How good the labels of every cycle are, against held ground truth."""
    rows_of = {c.number: c.metrics.get("labels", {}) for c in run.finished}
    if not any(rows_of.values()):
        return ""
    series = [Series(QUALITY[key][0], [(n, found.get(key)) for n, found in rows_of.items()], i) for i, key in enumerate(QUALITY)]
    chart = line_chart(series, title="label quality by cycle", form=tick_percent, whole_x=True, x_label="cycle", width=720)
    rows = [
        [f'{safe(name)}<small class="meaning">{safe(meaning)}</small>', *(percent(found.get(key)) for found in rows_of.values())]
        for key, (name, meaning) in QUALITY.items()
    ]
    return _figures([("", chart)]) + table(["", *(f"cycle {n}" for n in rows_of)], rows) + _baselines(run)


def _baselines(run: RunFolder) -> str:
    """The pairing of the first and the last cycle beside choices that ask less of an expression."""
    parts = []
    for cycle in dict.fromkeys((run.finished[0].number, run.finished[-1].number)):
        found = next(c for c in run.finished if c.number == cycle).metrics.get("pairing") or {}
        if not found.get("count"):
            continue
        rows = [["pairing", percent(found.get("pairing")), "", ""]]
        for key, name in CHOICES.items():
            one = found.get(key, {})
            lead, low, high = (one.get(part) for part in ("difference", "low", "high"))
            span = f"{points(low)} to {points(high)}" if known(low) and known(high) else UNKNOWN
            rows.append([safe(name), percent(one.get("hit_rate")), points(lead) if known(lead) else UNKNOWN, span])
        rows.append(["the best region", percent(found.get("ceiling")), "", ""])
        caption = f"Cycle {cycle}: pairing of {found['count']:,} true expressions of {found.get('images', 0):,} images beside simpler choices"
        parts.append(table(["choice", "hit rate", "pairing minus it", "95 % interval over images"], rows, caption))
    return "".join(parts)


def text_quality(run: RunFolder) -> str:
    """Region-Centrality and Reference-Discrimination of the made expressions, before and after Filtering."""
    rows_of = {c.number: c.metrics.get("texts") or {} for c in run.finished}
    kinds = [kind for kind in TEXT_KINDS if any(kind in found for found in rows_of.values())]
    rows = []
    for kind in kinds:
        for key, (name, meaning) in TEXT_QUALITY.items():
            cells = []
            for found in rows_of.values():
                shares = [percent(found.get(kind, {}).get(stage, {}).get(key)) for stage in ("before", "after")]
                cells.append(" → ".join(shares))
            rows.append([f'{safe(TEXT_KINDS[kind])}: {safe(name)}<small class="meaning">{safe(meaning)}</small>', *cells])
    return table(["before → after Filtering", *(f"cycle {n}" for n in rows_of)], rows) if rows else ""


def outcomes(run: RunFolder) -> str:
    """Why labels were dropped, with counts, for pseudo expressions and for the data set's expressions."""
    parts = []
    for pairs, caption in ((False, "Pseudo expressions"), (True, "True expressions, paired with a region")):
        counts = {
            c.number: {(kept, reason): n for (pair, kept, reason), n in c.outcomes.items() if pair == pairs and reason != _NOT_CHOSEN}
            for c in run.cycles
        }
        counts = {number: found for number, found in counts.items() if found}
        fates = {fate: sum(found.get(fate, 0) for found in counts.values()) for found in counts.values() for fate in found}
        rows = []
        for kept, reason in sorted(fates, key=lambda fate: (not fate[0], -fates[fate])):
            cells = [_count(found.get((kept, reason), 0), sum(found.values())) for found in counts.values()]
            rows.append([("kept" if kept else safe(reason or "dropped")), *cells])
        if rows:
            parts.append(table([caption, *(f"cycle {n}" for n in counts)], rows))
    return "".join(parts)


def _count(count: int, total: int) -> str:
    return f'<span class="bar" style="--share:{count / total:.3f}">{count:,} <small>{percent(count / total)}</small></span>' if count else "–"


def losses(run: RunFolder) -> str:
    """Loss curves and validation scores: a small chart for each loss, a line for each cycle."""
    parts = []
    for stage in STAGES:
        cycles = spread([c for c in run.cycles if c.histories.get(stage, {}).get("losses")], KINDS)
        if not cycles:
            continue
        styled = [(i, c, c.histories[stage]) for i, c in enumerate(cycles)]
        names = list(dict.fromkeys(name for _, _, history in styled for name in history["losses"]))
        charts = []
        for name in sorted(names, key=lambda name: name != "loss"):
            lines = [
                Series(f"cycle {c.number}", _curve(history["losses"].get(name, []), history.get("every", 1)), i) for i, c, history in styled
            ]
            charts.append((name, _small(lines, f"{stage}: {name} by step")))
        scores = [Series(f"cycle {c.number}", [tuple(point) for point in history.get("validation", [])], i) for i, c, history in styled]
        charts.append(("validation Acc@0.5", _small(scores, f"{stage}: validation by step", tick_percent)))
        key = legend([Series(f"cycle {c.number}", [], i) for i, c, _ in styled], marked=False) if len(styled) > 1 else ""
        parts.append(f"<h3>{stage.capitalize()}</h3>{key}{_figures(charts, 'small')}")
    return "".join(parts)


def _small(lines: list[Series], title: str, form="{:.3g}".format) -> str:
    return line_chart(lines, title=title, width=340, height=190, labels=False, x_label="step", form=form)


def _curve(values: list[float], every: int, most: int = 240) -> list[tuple[int, float]]:
    """Points of a loss; a long one is averaged in groups, for an eye sees no more points than that."""
    group = max(1, -(-len(values) // most))
    chunks = [[v for v in values[i : i + group] if known(v)] for i in range(0, len(values), group)]
    return [(min((i + 1) * group, len(values)) * every, sum(chunk) / len(chunk)) for i, chunk in enumerate(chunks) if chunk]


def _figures(charts: list[tuple[str, str]], size: str = "") -> str:
    figures = "".join(f"<figure>{f'<figcaption>{safe(name)}</figcaption>' if name else ''}{chart}</figure>" for name, chart in charts if chart)
    return f'<div class="figures {size}">{figures}</div>' if figures else ""
