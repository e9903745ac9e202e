"""Shapes of the pictures in this folder, as SVG text. Same input, same bytes."""

import html
import unicodedata
from collections.abc import Sequence

FONT = "system-ui, 'Segoe UI', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"
# Colors that are readable on white and on GitHub's dark background.
INK = "#24292f"
QUIET = "#57606a"
LINE = "#8c959f"
CARD = "#ffffff"
BLUE = "#ddeeff"
ORANGE = "#ffe8d6"
GREEN = "#dff3e0"
GRAY = "#f0f1f3"


def width_of(text: str, size: float) -> float:
    """Estimate the width of a text: a Chinese character is as wide as it is high, a Latin one about half of that."""
    return size * sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.62 for letter in text)


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break a text into lines that fit into `width`, at spaces where there are any."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.replace(" ", " \0").split("\0"):
            if width_of(line + word.rstrip(), size) > width and line:
                lines.append(line.rstrip())
                line = ""
            while width_of(word.rstrip(), size) > width:  # Chinese has no spaces
                fitting = next(n for n in range(len(word), 0, -1) if width_of(word[:n], size) <= width)
                lines.append(word[:fitting])
                word = word[fitting:]
            line += word
        lines.append(line.rstrip())
    return lines


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 14,
    anchor: str = "middle",
    color: str = INK,
    bold: bool = False,
    italic: bool = False,
) -> str:
    style = (' font-weight="600"' if bold else "") + (' font-style="italic"' if italic else "")
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{color}"{style} '
        f'xml:space="preserve">{html.escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str = GRAY, words: Sequence[str] = ()) -> str:
    """Draw a rounded box with centered lines; the first is bold."""
    parts = [f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{LINE}"/>']
    top = y + height / 2 - 9 * (len(words) - 1) + 5
    for number, line in enumerate(words):
        size, color = (14, INK) if number == 0 else (12, QUIET)
        parts.append(text(x + width / 2, top + 18 * number, line, size=size, color=color, bold=number == 0))
    return "\n".join(parts)


def arrow(*points: tuple[float, float], words: str = "", side: float = 8) -> str:
    """Draw an arrow through the points, with words next to the middle of its last part."""
    path = " ".join(f"{'M' if number == 0 else 'L'}{x:g} {y:g}" for number, (x, y) in enumerate(points))
    parts = [f'<path d="{path}" fill="none" stroke="{QUIET}" stroke-width="1.5" marker-end="url(#head)"/>']
    if words:
        (x1, y1), (x2, y2) = points[-2:]
        anchor = "start" if side >= 0 else "end"
        parts.append(text((x1 + x2) / 2 + side, (y1 + y2) / 2 + 4, words, size=12, anchor=anchor, color=QUIET))
    return "\n".join(parts)


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """Write a whole SVG file, on a light card."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="{FONT}" role="img">\n<title>{html.escape(title)}</title>\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{QUIET}"/></marker></defs>\n'
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{CARD}"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
