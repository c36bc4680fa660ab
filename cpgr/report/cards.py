"""The gallery: a card for each expression with a picture that holds every cycle's boxes and attention.

Which cycle and which layers are seen is chosen by radio buttons and check boxes and done by the style sheet alone:
the page has no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..drawing import STYLES, Heat
from ..metrics import HIT
from .folder import CycleRecord, RunFolder
from .pictures import heat_uri, thumbnail
from .text import decimal, known, percent, safe, table

MOST_CYCLES = 8  # more would make the page heavy: the first, the last and some between are shown
LAYERS = {"heat": "attention", "chosen": "chosen region", "prediction": "model's answer", "true": "true box", "proposal": "proposals"}
FILTERS = {"all": "all", "training": "training", "evaluation": "evaluation", "right": "right", "wrong": "wrong", "none": "without a label"}


def spread(items: Sequence, most: int) -> list:
    """At most `most` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def gallery(run: RunFolder) -> str:
    """The section's HTML, or "" where no cycle has a gallery."""
    cycles = spread([cycle for cycle in run.cycles if cycle.gallery], MOST_CYCLES)
    if not cycles:
        return ""
    cards: dict[tuple, dict[int, dict]] = {}
    for cycle in cycles:
        for entry in cycle.gallery:
            cards.setdefault((entry["role"], entry["split"], entry["expression_id"]), {})[cycle.number] = entry
    body = "".join(_card(entries, run.root) for entries in cards.values())
    return f'<style>{_rules(cycles)}</style><div class="gallery">{_controls(cycles)}{_legend()}<div class="cards">{body}</div></div>'


def _rules(cycles: list[CycleRecord]) -> str:
    """The style rules that need the cycles' numbers and the boxes' styles."""
    rules = []
    for n in (cycle.number for cycle in cycles):
        on = f".gallery:has(#cycle-{n}:checked)"
        rules.append(f"{on} .c:not(.c{n}),{on} .card:not(.has{n}){{display:none}}")
        rules.append(f"@media (min-width:660px){{{on} .card:has(.c{n} details[open] table){{grid-column:span 2}}}}")
        rules += [f"{on}:has(#only-{v}:checked) .card:not(.{v}{n}){{display:none}}" for v in ("right", "wrong", "none")]
    rules += [f".gallery:has(#only-{role}:checked) .card:not(.{role}){{display:none}}" for role in ("training", "evaluation")]
    rules += [f".gallery:has(#layer-{name}:not(:checked)) .card .{name}{{display:none}}" for name in LAYERS]
    for name, style in STYLES.items():
        dash = ",".join(str(d * style.width) for d in style.dash)
        rules.append(f".{name} .ink{{stroke:{style.color};stroke-width:{style.width}px;stroke-dasharray:{dash or 'none'}}}")
        rules.append(f".{name} .case{{stroke-width:{style.width + 2}px;stroke-dasharray:{dash or 'none'}}}")
    return "".join(rules)


def _controls(cycles: list[CycleRecord]) -> str:
    last = cycles[-1].number
    radio = '<label><input type="radio" name="{0}" id="{0}-{1}"{2}><span>{3}</span></label>'
    box = '<label><input type="checkbox" id="layer-{}" checked><span>{}</span></label>'
    groups = {
        "Cycle": "".join(radio.format("cycle", c.number, " checked" * (c.number == last), c.number) for c in cycles),
        "Show": "".join(radio.format("only", key, " checked" * (key == "all"), name) for key, name in FILTERS.items()),
        "Layers": "".join(box.format(key, name) for key, name in LAYERS.items()),
    }
    return '<div class="controls">' + "".join(f"<fieldset><legend>{n}</legend>{g}</fieldset>" for n, g in groups.items()) + "</div>"


def _legend() -> str:
    items = "".join(
        f'<li class="{name}"><svg viewBox="0 0 44 16" aria-hidden="true"><rect class="ground" width="44" height="16" rx="3"/>'
        f'<path class="case" d="M5 8H39"/><path class="ink" d="M5 8H39"/></svg>{safe(style.meaning)}</li>'
        for name, style in reversed(STYLES.items())
    )
    return f'<ul class="legend boxes">{items}<li><span class="ramp"></span>attention, less to more</li></ul>'


def _card(entries: dict[int, dict], root: Path) -> str:
    first = next(iter(entries.values()))
    image, role = first["image"], first["role"]
    width, height = image["width"], image["height"]
    uri = thumbnail(root / image["path"])
    classes = " ".join(["card", role, *(f"has{n} {_verdict(e)[0]}{n}" for n, e in entries.items())])
    ground = (
        f'<image href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        if uri
        else f'<rect class="missing" width="{width}" height="{height}"/>'
    )
    layers = "".join(f'<g class="c c{n}">{_layers(e, width, height)}</g>' for n, e in entries.items())
    note = "" if uri else f'<p class="note">The image file is not there any more: {safe(image["path"])}</p>'
    label = safe(f"{first['expression']}, image {image['id']}")
    return (
        f'<article class="{classes}"><svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{ground}{layers}</svg>'
        f'<h3 dir="auto">{safe(first["expression"])}</h3>{note}'
        + "".join(f'<div class="c c{n}">{_facts(e)}</div>' for n, e in entries.items())
        + "</article>"
    )


def _layers(entry: dict, width: int, height: int) -> str:
    parts = []
    if entry.get("attention"):
        heat = Heat(**entry["attention"])
        x, y, across, down = (f"{v:.2f}" for v in heat.place(width, height))
        parts.append(
            f'<image class="heat" href="{heat_uri(heat)}" x="{x}" y="{y}" width="{across}" height="{down}" preserveAspectRatio="none"/>'
        )
    for region in entry.get("proposals", []):
        score = f", score {decimal(region['score'], 2)}" if known(region["score"]) else ""
        parts.append(_box("proposal", region["box"], f"region {region['region_id']}: {region['words']}{score}"))
    parts.append(_box("prediction", entry["prediction"]["box"], "model's answer"))
    if entry.get("chosen"):
        parts.append(_box("chosen", entry["chosen"]["box"], f"chosen region {entry['chosen']['region_id']}"))
    parts.append(_box("true", entry["true_box"], "true box"))
    return "".join(parts)


def _box(kind: str, box: list[float] | None, title: str) -> str:
    if box is None:
        return ""
    x1, y1, x2, y2 = box
    shape = f'x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0):.1f}" height="{max(y2 - y1, 0):.1f}"'
    return f'<g class="{kind}"><title>{safe(title)}</title><rect class="case" {shape}/><rect class="ink" {shape}/></g>'


def _verdict(entry: dict) -> tuple[str, str]:
    """A class for the filters and the words on the card."""
    what = "label" if entry["role"] == "training" else "answer"
    if entry["role"] == "training" and not entry.get("chosen"):
        return "none", "○ no label"
    if not known(entry["iou"]):
        return "unknown", f"{what}: no true box"
    right = entry["iou"] >= HIT
    return ("right", f"✓ {what} right") if right else ("wrong", f"✗ {what} wrong")


def _facts(entry: dict) -> str:
    kind, words = _verdict(entry)
    overlap = f"IoU {decimal(entry['iou'], 2)}" if known(entry["iou"]) else ""
    chips = f'<p class="chips"><b class="{kind}">{words}</b><span>{overlap}</span><span class="split">{safe(entry["split"])}</span></p>'
    answer = entry["prediction"]
    score = f"score {decimal(answer['score'], 2)}" if known(answer["score"]) else ""
    if entry["role"] != "training":
        return f'{chips}<p class="fact">{score}</p>'
    regions = {region["region_id"]: region["words"] for region in entry.get("proposals", [])}
    chosen = entry.get("chosen")
    if chosen:
        label = f"Region {chosen['region_id']}" + (f", “{safe(regions[chosen['region_id']])}”" if regions.get(chosen["region_id"]) else "")
    else:
        label = f"Dropped: {safe(entry['reason'])}"
    model = ", ".join(filter(None, [f"IoU {decimal(answer['iou'], 2)}" if known(answer["iou"]) else "", score]))
    return f'{chips}<p class="fact">{label}</p><p class="fact">Model’s answer: {model}</p>' + _pairs(entry, regions) + _labels(entry)


def _pairs(entry: dict, regions: dict[int, str]) -> str:
    """The scores by which the region was chosen, best region first."""
    pairs = entry.get("pairs", [])
    names = list(dict.fromkeys(name for pair in pairs for name in pair["scores"]))
    if not names:
        return ""
    lead = names[0] if "posterior" not in names else "posterior"
    names = [lead, *(name for name in names if name != lead)]
    chosen = (entry.get("chosen") or {}).get("region_id")
    rows = []
    for pair in sorted(pairs, key=lambda pair: -(pair["scores"].get(lead) or 0.0)):
        number = pair["region_id"]
        head = f"{number} {safe(regions.get(number, ''))}" + (" ◀" if number == chosen else "")
        share = pair["scores"].get("posterior")
        cells = [_score(pair["scores"].get(name)) for name in names]
        if known(share):
            cells[0] = f'<span class="bar" style="--share:{min(max(share, 0.0), 1.0):.3f}">{percent(share)}</span>'
        rows.append([head, *cells])
    return f"<details><summary>Scores of {len(pairs)} regions</summary>{table(['region', *names], rows)}</details>"


def _score(value: float | None) -> str:
    return f"{value:.3g}" if known(value) else "–"


def _labels(entry: dict) -> str:
    """The image's pseudo expressions, kept ones first, with the reason why each other was dropped."""
    labels = sorted(entry.get("labels", []), key=lambda label: not label["kept"])
    if not labels:
        return ""
    kept = sum(label["kept"] for label in labels)
    items = []
    for label in labels:
        scores = ", ".join(f"{safe(name)} {_score(value)}" for name, value in label["scores"].items())
        fate = "kept" if label["kept"] else f"dropped, {safe(label['reason'])}"
        items.append(
            f'<li class="{"kept" if label["kept"] else "dropped"}"><span dir="auto">{safe(label["expression"])}</span>'
            f"<small>region {label['region_id']}, {fate}{'; ' + scores if scores else ''}</small></li>"
        )
    return f"<details><summary>{len(labels)} pseudo expressions, {kept} kept</summary><ul class=\"texts\">{''.join(items)}</ul></details>"
