"""Pieces of HTML and SVG. Everything that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10

PALETTE = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#7b61c9", "#a3be3c"),
    *("#3b8686", "#c44e52", "#88a2c4", "#5d4037", "#e377c2", "#2f4b7c", "#b5b35c", "#6e7f80"),
)
"""Colours of operators, in the order of the program."""
TIME_STEPS = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
BOOTSTRAPPING = "#d55e00"
"""Of the operator that everybody looks for."""
PLANNED = "#c3ccd6"
MEASURED = "#2f6fb0"
INK, FAINT, LINE = "#1c2430", "#566272", "#dfe4ea"

STYLE = f"""
:host, .aegis {{ font: 14px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
  color: {INK} }}
.bk-clearfix {{ width: 100% }}
.aegis h2 {{ font-size: 15px; font-weight: 650; margin: 0 0 2px }}
.aegis .note {{ color: {FAINT}; font-size: 12.5px; margin: 0 0 10px }}
.aegis .none {{ color: {FAINT}; margin: 8px 0 }}
.aegis table {{ border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums }}
.aegis th {{ font-weight: 600; color: {FAINT}; text-align: right; white-space: nowrap }}
.aegis td, .aegis th {{ padding: 4px 10px 4px 0; text-align: right;
  border-bottom: 1px solid {LINE} }}
.aegis td:last-child, .aegis th:last-child {{ padding-right: 0 }}
.aegis td.name, .aegis th.name {{ text-align: left; overflow-wrap: anywhere }}
.aegis td {{ white-space: nowrap }}
.aegis td.name {{ white-space: normal }}
.aegis .drawn {{ text-align: left }}
.aegis td.drawn {{ width: 34%; min-width: 50px }}
.aegis td.drawn .bar {{ min-width: 50px }}
.aegis .bar {{ position: relative; height: 12px; border-radius: 3px; background: #eef1f4;
  overflow: hidden }}
.aegis .bar span {{ position: absolute; left: 0; top: 0; bottom: 0 }}
.aegis .bar .thin {{ top: 3px; bottom: 3px; border-radius: 2px }}
.aegis .legend {{ display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; padding: 0;
  list-style: none; font-size: 12.5px }}
.aegis .legend i {{ display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; vertical-align: -1px }}
.aegis .legend small {{ color: {FAINT}; font-size: inherit }}
.aegis svg {{ display: block; width: 100%; height: auto }}
.aegis svg text {{ font: 11.5px system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
  fill: {FAINT} }}
.aegis svg .strong {{ fill: {INK} }}
.aegis .state {{ display: inline-block; padding: 1px 9px; border-radius: 10px; font-size: 12.5px;
  font-weight: 600; color: #fff; vertical-align: 2px }}
.aegis .error {{ color: #a3260d; margin: 10px 0 0 }}
""".strip()

CARDS = f"""
.aegis-page {{ max-width: 1280px; margin: 0 auto; padding: 14px 4px 40px; display: grid;
  grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px }}
.aegis-page > section {{ background: #fff; border: 1px solid {LINE}; border-radius: 8px;
  padding: 14px 18px 16px; min-width: 0 }}
.aegis-page > section.whole {{ grid-column: 1 / -1 }}
@media (max-width: 900px) {{ .aegis-page > section {{ grid-column: 1 / -1 }} }}
""".strip()


def text(value: object) -> str:
    """Return a value as text in HTML."""
    return escape(str(value))


def row(cells: Iterable[object], tag: str = "td", left: int = 1) -> str:
    """Return a row of a table; the first `left` cells are names."""
    out = []
    for i, cell in enumerate(cells):
        kind = ' class="name"' if i < left else ""
        if isinstance(cell, Raw):
            kind = ' class="drawn"'
        scope = ' scope="col"' if tag == "th" else ""
        out.append(f"<{tag}{kind}{scope}>{cell if isinstance(cell, Raw) else text(cell)}</{tag}>")
    return f"<tr>{''.join(out)}</tr>\n"


class Raw(str):
    """HTML that is ours."""

    __slots__ = ()


def table(head: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return a table; cells that are not `Raw` are escaped."""
    body = "".join(row(r, left=left) for r in rows)
    return f"<table><thead>{row(head, 'th', left)}</thead><tbody>{body}</tbody></table>"


def bar(share: float, colour: str = MEASURED, label: str = "") -> Raw:
    """Return a bar that is filled to a share."""
    width = 100 * min(1.0, max(0.0, share))
    return Raw(
        f'<div class="bar" role="img" aria-label="{text(label or f"{width:.0f} %")}">'
        f'<span style="width:{width:.1f}%;background:{colour}"></span></div>'
    )


def bullet(
    measured: float, planned: float | None, whole: float, label: str, slack: float = 1.0
) -> Raw:
    """Return a thin bar of what was measured over a thick one of what was planned.

    More than `slack` times what was planned stands out.
    """
    whole = whole or 1.0
    parts = []
    if planned is not None:
        parts.append(
            f'<span style="width:{min(100.0, 100 * planned / whole):.1f}%;background:{PLANNED}">'
            "</span>"
        )
    colour = BOOTSTRAPPING if planned is not None and measured > slack * planned > 0 else MEASURED
    parts.append(
        f'<span class="thin" style="width:{min(100.0, 100 * measured / whole):.1f}%;'
        f'background:{colour}"></span>'
    )
    return Raw(f'<div class="bar" role="img" aria-label="{text(label)}">{"".join(parts)}</div>')


def none(message: str) -> str:
    """Return a sentence where there is nothing to show."""
    return f'<p class="none">{text(message)}</p>'


def colours(operators: Sequence[str]) -> list[str]:
    """Return a colour for each operator; further ones than there are colours share them."""
    out, k = [], 0
    for name in operators:
        if name == "bootstrapping":
            out.append(BOOTSTRAPPING)
        else:
            out.append(PALETTE[k % len(PALETTE)])
            k += 1
    return out


def time_ticks(end: float, about: int = 8) -> list[float]:
    """Return round times from 0 to `end`, in seconds."""
    if end < 60:
        return ticks(end, about)
    step = next((s for s in TIME_STEPS if end / s <= about), 3600 * ceil(end / 3600 / about))
    return [float(t) for t in range(0, int(end) + 1, step)]


def ticks(end: float, about: int = 8) -> list[float]:
    """Return round numbers from 0 to `end`."""
    if end <= 0:
        return [0.0]
    rough = end / about
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough)
    return [k * step for k in range(int(end / step * (1 + 1e-9)) + 1)]


def time_text(seconds: float) -> str:
    """Return a time for people to read."""
    if not seconds:
        return "0 s"
    if seconds < 0.0995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
