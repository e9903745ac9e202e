"""Read numbers of RESULTS.md back, for the pages that repeat them."""

from functools import cache

from engine.flags import ROOT

Table = dict[str, dict[str, str]]  # name of the row -> {column: cell}


@cache
def sections() -> dict[str, list[str]]:
    """Return {heading: its lines}."""
    lines_of: dict[str, list[str]] = {}
    for line in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            lines = lines_of.setdefault(line[3:], [])
        elif lines_of:
            lines.append(line)
    return lines_of


def table(*parts: str) -> Table:
    """Return the first table of the section whose heading holds all `parts`; ValueError for none or several."""
    fitting = [heading for heading in sections() if all(part in heading for part in parts)]
    if len(fitting) != 1:
        raise ValueError(f"RESULTS.md: {len(fitting)} headings hold {', '.join(parts)}, expected one")
    lines = [line.strip("|").split("|") for line in sections()[fitting[0]] if line.startswith("|")]
    rows = [[cell.strip() for cell in cells] for cells in lines]
    return {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[2:]}


def number(cell: str) -> float:
    """Return the first number of a cell: 716 of "716 (707 to 726)"."""
    return float(cell.split()[0].rstrip("%x").replace(",", ""))
