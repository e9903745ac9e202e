"""The parts of the report's page: escaped text, tables, line charts as inline SVG, and the one style they share."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #fff; --ink: #1f2328; --quiet: #616871; --line: #dcdad5;
  --a: #2166ac; --b: #c2570c; --c: #3d7d3a; --good: #2b7a3d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1e2125; --ink: #e6e4e0; --quiet: #9aa1a9;
  --line: #373b41; --a: #6fb1f0; --b: #f0985a; --c: #82c47e; --good: #7fce8f; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } p { margin: .4rem 0; max-width: 46rem; } .quiet { color: var(--quiet); }
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
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1rem; margin: 0; font-size: .875rem; }
dt { color: var(--quiet); } dd { margin: 0; } .good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: .75rem; } summary { cursor: pointer; } code { font-size: .8125rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) { body { padding: 1rem .75rem 3rem; } th, td { padding: .35rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""
COLOURS = ("--a", "--b", "--c")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 440, 250, 46, 40, 10, 14


class Line(NamedTuple):
    """One curve of a chart; `dots` marks its points, for a curve of few of them."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def text(words: object) -> str:
    return html.escape(str(words))


def page(title: str, body: list[str]) -> str:
    head = (
        f'<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>'
    )
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Rows of cells; the first `left` columns are words. A row of one cell heads the group of rows below it."""
    side = lambda column: ' class="left"' if column < left else ""
    lines = ["<tr>" + "".join(f"<th{side(column)}>{text(cell)}</th>" for column, cell in enumerate(head)) + "</tr>"]
    for row in rows:
        if len(row) == 1:
            lines.append(f'<tr class="group"><td class="left" colspan="{len(head)}">{text(row[0])}</td></tr>')
        else:
            cells = "".join(f"<td{side(column)}>{text(cell)}</td>" for column, cell in enumerate(row))
            lines.append(f"<tr>{cells}</tr>")
    return '<div class="scroll" tabindex="0"><table>\n' + "\n".join(lines) + "\n</table></div>"


def definitions(pairs: dict[str, str]) -> str:
    """Names and their already escaped content."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{content}</dd>" for name, content in pairs.items()) + "</dl>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Every k-th point and the last, so that a long run does not fill the page with numbers."""
    step = -(-len(points) // most)
    return [*points[:-1:step], points[-1]]


def chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """A line chart, or nothing where there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    (left, right), (low, high) = ((min(values), max(values)) for values in (xs, ys))
    right, margin = right if right > left else left + 1, (high - low) * 0.05 or 0.5
    low, high = max(0.0, low - margin) if low >= 0 else low - margin, high + margin
    at_x = lambda x: LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
    at_y = lambda y: TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">']
    for y in ticks(low, high):
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(left, right):
        parts.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.10g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{text(x_label)}</text>')
    for line, colour in zip(lines, COLOURS, strict=False):
        places = [(f"{at_x(x):.1f}", f"{at_y(y):.1f}") for x, y in thinned(line.points)]
        joined = " ".join(",".join(place) for place in places)
        parts.append(f'<polyline points="{joined}" style="stroke: var({colour})"/>')
        if line.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" style="fill: var({colour})"/>' for x, y in places]
    parts.append("</svg>")
    keys = "".join(
        f'<span><i style="background: var({colour})"></i>{text(line.label)}</span>'
        for line, colour in zip(lines, COLOURS, strict=False)
    )
    return (
        f'<figure class="card"><h3>{text(title)}</h3><div class="key">{keys}<span>{text(y_label)}</span></div>'
        + "".join(parts)
        + "</figure>"
    )
