"""Build the parts of the report's page: escaped text, tables, line charts as inline SVG, and their style."""

import html
import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #1f2328; --quiet: #616871; --line: #dcdad5;
  --a: #2166ac; --b: #c2570c; --c: #3d7d3a; --good: #2b7a3d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1e2125; --ink: #e6e4e0; --quiet: #9aa1a9;
  --line: #373b41; --a: #6fb1f0; --b: #f0985a; --c: #82c47e; --good: #7fce8f; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; } .quiet { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
tr:first-child > th { border-top: 0; } th { color: var(--quiet); font-weight: 600; }
th.left, td.left { text-align: left; white-space: normal; min-width: 9rem; }
tr.group > td { font-weight: 600; border-top: 2px solid var(--line); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.card, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.card { padding: .75rem 1rem; min-width: 0; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 13px; } svg .axis { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .8125rem; color: var(--quiet); }
.key i { display: inline-block; width: 1.2em; height: 3px; margin-right: .4em; vertical-align: middle; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; max-height: 14rem; overflow-y: auto; }
dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: .3rem 1rem; margin: 0;
  font-size: .875rem; }
dt { color: var(--quiet); overflow-wrap: anywhere; }
dd { margin: 0; } .good { color: var(--good); } .bad { color: var(--bad); }
ins, del { border-radius: 2px; text-decoration: none; background: color-mix(in srgb, var(--good) 25%, transparent); }
del { text-decoration: line-through; background: color-mix(in srgb, var(--bad) 20%, transparent); }
.bars { display: grid; grid-template-columns: max-content minmax(2rem, 1fr) max-content; gap: .2rem .75rem;
  align-items: center; font-size: .875rem; font-variant-numeric: tabular-nums; }
.bars i { display: block; height: .8rem; min-width: 1px; background: var(--a); border-radius: 2px; }
.bars span { color: var(--quiet); } .bars b { font-weight: 400; text-align: right; }
details { margin-top: .75rem; } summary { cursor: pointer; } code { font-size: .8125rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) { body { padding: 1rem .75rem 3rem; } th, td { padding: .35rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""
COLORS = ("--a", "--b", "--c")
WIDTH, HEIGHT = 440, 250  # pixels of a chart
LEFT, RIGHT = 46, 14  # its margins
TOP, BOTTOM = 10, 40


class Line(NamedTuple):
    """A curve of a chart; `dots` shows its points, for a curve of few of them."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def text(content: object) -> str:
    """Escape text for a page."""
    return html.escape(str(content))


def page(title: str, body: list[str]) -> str:
    """Join the parts of a page."""
    head = (
        f'<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>'
    )
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Format rows of cells; the first `left` columns are text. A row of one cell is the heading of those below it."""
    classes = [' class="left"'] * left + [""] * (len(head) - left)
    lines = [
        "<tr>" + "".join(f"<th{side}>{text(cell)}</th>" for side, cell in zip(classes, head, strict=True)) + "</tr>"
    ]
    for row in rows:
        if len(row) == 1:
            lines.append(f'<tr class="group"><td class="left" colspan="{len(head)}">{text(row[0])}</td></tr>')
        else:
            cells = "".join(f"<td{side}>{text(cell)}</td>" for side, cell in zip(classes, row, strict=True))
            lines.append(f"<tr>{cells}</tr>")
    return '<div class="scroll" tabindex="0"><table>\n' + "\n".join(lines) + "\n</table></div>"


def bars(title: str, counts: Sequence[tuple[str, int]]) -> str:
    """Draw a bar for each count, next to its name and number."""
    largest = max((count for _, count in counts), default=0) or 1
    parts = ""
    for name, count in counts:
        bar = f'<i style="width: {count / largest:.1%}"></i>' if count else ""
        parts += f"<span>{text(name)}</span><div>{bar}</div><b>{count:,}</b>"
    return f'<figure class="card"><h3>{text(title)}</h3><div class="bars">{parts}</div></figure>'


def card(title: str, pairs: dict[str, str]) -> str:
    """Format a box with a title, and names with their content, which is HTML."""
    content = "".join(f"<dt>{text(name)}</dt><dd>{content}</dd>" for name, content in pairs.items())
    return f'<div class="card"><h3>{text(title)}</h3><dl>{content}</dl></div>'


def section(title: str, boxes: str, note: str = "") -> str:
    """Format charts or cards under a heading, or nothing if there are none."""
    note = note and f'<p class="quiet">{note}</p>'
    return f'<h2>{title}</h2>\n{note}<div class="grid">{boxes}</div>' if boxes else ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thin_out(points: Sequence[tuple[float, float]], limit: int = 300) -> list[tuple[float, float]]:
    """Keep every k-th point and the last, so that a long run does not fill the page with numbers."""
    step = -(-len(points) // limit)
    return [*points[:-1:step], points[-1]]


def chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Draw a line chart, or nothing if no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs, ys = zip(*chain.from_iterable(line.points for line in lines), strict=True)
    margin = (max(ys) - min(ys)) * 0.05 or 0.5
    x_min, x_max = min(xs), max(max(xs), min(xs) + 1)
    y_min, y_max = max(min(ys) - margin, min(0.0, *ys)), max(ys) + margin
    to_x = partial(np.interp, xp=(x_min, x_max), fp=(LEFT, WIDTH - RIGHT))
    to_y = partial(np.interp, xp=(y_min, y_max), fp=(HEIGHT - BOTTOM, TOP))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">']
    for y in ticks(y_min, y_max):
        parts += [
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"/>',
            f'<text x="{LEFT - 6}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>',
        ]
    for x in ticks(x_min, x_max):
        parts.append(f'<text x="{to_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.10g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{text(x_label)}</text>')
    legend = ""
    for line, color in zip(lines, COLORS, strict=False):
        legend += f'<span><i style="background: var({color})"></i>{text(line.label)}</span>'
        pixels = [(f"{to_x(x):.1f}", f"{to_y(y):.1f}") for x, y in thin_out(line.points)]
        joined = " ".join(",".join(pixel) for pixel in pixels)
        parts.append(f'<polyline points="{joined}" style="stroke: var({color})"/>')
        if line.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" style="fill: var({color})"/>' for x, y in pixels]
    parts.append("</svg>")
    head = f'<h3>{text(title)}</h3><div class="key">{legend}<span>{text(y_label)}</span></div>'
    return f'<figure class="card">{head}{"".join(parts)}</figure>'
