"""Numbers as people read them, and text made safe for a page."""

from __future__ import annotations

import math
from html import escape

UNKNOWN = "not measurable here"


def safe(text: object) -> str:
    """Text for HTML, between tags or in a quoted attribute. Expressions come from files nobody has vouched for."""
    return escape(str(text), quote=True)


def known(value: object) -> bool:
    """Whether it is a number that was measured: None and NaN are not."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def percent(value: object, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %" if known(value) else UNKNOWN


def decimal(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if known(value) else UNKNOWN


def tick_percent(value: float) -> str:
    """A fraction on an axis, as short as it is exact to a hundredth of a per cent."""
    return f"{round(100 * value, 2):g}%"


def points(change: float) -> str:
    """A change of a fraction, in percentage points with its sign."""
    return f"{'+' if change >= 0 else '−'}{abs(100 * change):.1f} points"


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` trials."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def table(head: list[str], rows: list[list[str]], caption: str = "") -> str:
    """An HTML table of cells that are HTML already; the first cell of a row heads it."""
    top = f"<caption>{safe(caption)}</caption>" if caption else ""
    top += "<thead><tr>" + "".join(f'<th scope="col">{safe(cell)}</th>' for cell in head) + "</tr></thead>"
    body = "".join(f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
