"""Figures of RESULTS.md read back, for the pages that repeat them."""

from functools import cache

from engine.flags import ROOT

Table = dict[str, dict[str, str]]  # name of the row -> {column: cell}


@cache
def sections() -> dict[str, list[str]]:
    """{heading: its lines}."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            lines = found.setdefault(line[3:], [])
        elif found:
            lines.append(line)
    return found


def table(*words: str) -> Table:
    """The first table of the one section whose heading holds all `words`; ValueError where it is none or several."""
    fitting = [heading for heading in sections() if all(word in heading for word in words)]
    if len(fitting) != 1:
        raise ValueError(f"RESULTS.md: {len(fitting)} headings hold {', '.join(words)}, wanted one")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in sections()[fitting[0]] if line.startswith("|")
    ]
    return {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[2:]}


def number(cell: str) -> float:
    """The first number of a cell: 716 of "716 (707 to 726)"."""
    return float(cell.split()[0].rstrip("%x").replace(",", ""))
