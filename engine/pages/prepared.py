"""Write report.html of prepare_data.py: what was kept, changed and left out, with examples.

All of it is in prepared.json; the page loads nothing else.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from engine.corpus.input_files import REPORT_TITLE
from engine.corpus.rules import EXCERPT_CHARS, RULES
from engine.pages.html import bars, card, page, section, table, text

MOST_FILES = 200  # in a table; a folder of notes may have thousands
HELP = {rule.name: rule.help for rule in RULES}
LANGUAGES = {"zh": "Chinese", "en": "English", "other": "other"}


def write_report(prepared: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        prepared: Content of prepared.json.
        path: The page to write.
    """
    num_rows, num_kept = (sum(file[name] for file in prepared["files"]) for name in ("rows", "kept"))
    parts = [
        "<h1>Prepared data</h1>",
        f"<p>{num_kept:,} of {num_rows:,} rows of {len(prepared['files']):,} files were kept.</p>",
        output_section(prepared),
        file_section(prepared["files"]),
        rule_section(prepared["rules"]),
        length_section(prepared),
        repeat_section(prepared["repeats"]),
        left_section(prepared["left"]),
        version_section(prepared),
    ]
    path.write_text(page(REPORT_TITLE, list(filter(None, parts))), encoding="utf-8")


# ------------------------------------------------------------------------------------------------- counts


def output_section(prepared: dict[str, Any]) -> str:
    """Return the table of the files that the stages read."""
    rows = []
    for name, output in prepared["outputs"].items():
        unit = unit_of(output)
        rows.append([name, f"{output['rows']:,}", f"{output['bytes']:,}", f"{output[unit]:,} {unit}"])
    note = (
        f"{prepared['cut']:,} conversations lost their last turns, which do not fit a row." if prepared["cut"] else ""
    )
    return titled("Files for the stages", table(["file", "rows", "bytes", "length"], rows), note) if rows else ""


def unit_of(output: dict[str, int]) -> str:
    """Return the unit in which the rows of an output are measured."""
    return "tokens" if "tokens" in output else "characters"


def file_section(files: Sequence[dict]) -> str:
    """Return the rows of each source that were kept, and that each rule left out."""
    left_out = count("dropped", files)
    rules = [*filter(left_out.get, HELP), *sorted(left_out.keys() - HELP)]
    largest = sorted(range(len(files)), key=lambda number: -files[number]["rows"])
    others = [files[number] for number in largest[MOST_FILES:]]
    rows = [file_row(files[number]["name"], [files[number]], rules) for number in sorted(largest[:MOST_FILES])]
    if others:
        rows.append(file_row(f"{len(others):,} other files", others, rules))
    if len(files) > 1:
        rows.append(file_row("all", files, rules))
    head = ["file", "read as", "bytes", "rows", "kept", *(name.replace("_", " ") for name in rules)]
    content = table(head, rows, left=2)
    if notes := [[note, f"{rows:,}"] for note, rows in sorted(count("notes", files).items())]:
        content += f"<details><summary>What the rows hold</summary>{table(['note', 'rows'], notes)}</details>"
    return titled("Rows of each source", content, "The last columns: rows that each rule left out.")


def file_row(name: str, files: Sequence[dict], rules: Sequence[str]) -> list[str]:
    """Return the cells of some files: their form, if they have one, and the sums of their counts."""
    forms = {f"{file['type']}, {file['encoding']}" for file in files}
    sums = [sum(file[what] for file in files) for what in ("bytes", "rows", "kept")]
    left_out = count("dropped", files)
    numbers = [f"{number:,}" for number in sums]
    return [name, forms.pop() if len(forms) == 1 else "", *numbers, *(f"{left_out[rule]:,}" for rule in rules)]


def count(what: str, files: Sequence[dict]) -> Counter[str]:
    """Sum the counts by name that the files have under `what`."""
    total: Counter[str] = Counter()
    for file in files:
        total.update(file[what])
    return total


def length_section(prepared: dict[str, Any]) -> str:
    """Return bars of rows by length, and by language."""
    charts = ""
    for name, histogram in prepared["lengths"].items():
        charts += bars(f"{name}, {unit_of(prepared['outputs'].get(name, {}))}", named_bounds(histogram))
    names = [(LANGUAGES.get(name) or name, count) for name, count in prepared["languages"].items()]
    return section("Lengths and languages", charts + bars("rows by language, before repeats are dropped", names))


def named_bounds(histogram: Sequence[Sequence[int | None]]) -> list[tuple[str, int]]:
    """Name the ranges of [[upper bound, rows], ...], the last without a bound."""
    pairs, low = [], 0
    for bound, count in histogram:
        name = f"more than {low:,}" if bound is None else f"{low + 1:,} to {bound:,}"
        pairs.append((name, count or 0))
        low = bound or low
    return pairs


# ------------------------------------------------------------------------------------------------- rules


def rule_section(rules: Sequence[dict]) -> str:
    """Return the table of the rules that are on, and under it examples of those that found something."""
    rows, examples = [], ""
    for rule in rules:
        numbers = [f"{rule[what]:,}" for what in ("changed", "dropped")]
        if rule["on"]:
            rows.append([f"{rule['name']}: {HELP.get(rule['name'], '')}", *numbers])
        if rule["examples"]:
            counts = ", ".join(f"{what} {rule[what]:,}" for what in ("changed", "dropped") if rule[what])
            summary = f'<summary>{text(rule["name"])} <span class="quiet">{counts}</span></summary>'
            examples += (
                f'<details>{summary}<div class="grid">{"".join(map(example_card, rule["examples"]))}</div></details>'
            )
    off = [rule["name"] for rule in rules if not rule["on"]]
    note = "Rows, in the order in which the rules are applied. Keys and ID numbers are not shown."
    if off:
        note += f" Off: {', '.join(off)}."
    content = table(["rule", "changed", "dropped"], rows)
    return titled("Rules", content, note) + (examples and f"<h2>Examples</h2>\n{examples}")


def example_card(example: dict) -> str:
    """Return an example of a rule: the place of its first change before and after, or a row that it leaves out."""
    if not example["after"]:
        pairs = {"left out": said(text(example["before"]))}
    else:
        before, after = mark_difference(example["before"], example["after"])
        pairs = {"before": said(before), "after": said(after)}
    return card(place(example), pairs)


def place(row: dict) -> str:
    """Return the file and the line of a row."""
    return f"{row['file']}, line {row['line']:,}"


def said(content: str) -> str:
    """Wrap HTML as the words of a row."""
    return f'<div class="said">{content}</div>'


def mark_difference(before: str, after: str) -> tuple[str, str]:
    """Return both texts as HTML, in which what only one of them has is marked."""
    changes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    is_cut = max(len(before), len(after)) >= EXCERPT_CHARS  # so their ends differ, whatever the change is
    if is_cut and len(changes) > 1:
        changes[-1] = ("equal", *changes[-1][1:])
    html_before = html_after = ""
    for kind, begin, end, begin_after, end_after in changes:
        removed, added = text(before[begin:end]), text(after[begin_after:end_after])
        if kind != "equal":
            removed, added = removed and f"<del>{removed}</del>", added and f"<ins>{added}</ins>"
        html_before += removed
        html_after += added
    return html_before, html_after


# ------------------------------------------------------------------------------------------------- repeats and the rest


def repeat_section(repeats: dict[str, Any]) -> str:
    """Return how many rows repeat another one, and the largest clusters of them."""
    rows = [["the same as another row", f"{repeats['exact']:,}"], ["nearly the same", f"{repeats['near']:,}"]]
    names = {"exact": "the same as", "near": "nearly the same as", "contained": "a passage of"}
    for reason, count in repeats["held_out"].items():
        rows.append([f"{names.get(reason, reason)} a held-out row", f"{count:,}"])
    cards = ""
    for cluster in repeats["clusters"]:
        kept = cluster["kept"]
        pairs = {"kept": said(text(kept["text"]))}
        for copy in cluster["dropped"]:
            pairs[place(copy)] = said(mark_difference(kept["text"], copy["text"])[1])
        cards += card(f"{cluster['rows']:,} rows: {place(kept)}", pairs)
    clusters = cards and f'<h3>The largest clusters</h3><div class="grid">{cards}</div>'
    return titled("Repeats", table(["rows that were left out", "rows"], rows) + clusters)


def left_section(left: Sequence[Sequence[str]]) -> str:
    """Return the files that were not read, and why."""
    if not left:
        return ""
    rows = [*left[:MOST_FILES]]
    if len(left) > MOST_FILES:
        rows.append([f"{len(left) - MOST_FILES:,} other files", ""])
    return titled("Files that were not read", table(["file", "reason"], rows, left=2))


def version_section(prepared: dict[str, Any]) -> str:
    """Return what decides the bytes of the rows: versions of libraries, and the tokenizer."""
    pairs = {name: text(version) for name, version in prepared["libraries"].items()}
    pairs["tokenizer"] = f"<code>{text(prepared['tokenizer'])}</code>"
    pairs |= {f"--{name}": text(value) for name, value in prepared.get("flags", {}).items()}
    return section("Made with", card("versions", pairs), "The same versions make the same bytes of the same files.")


def titled(title: str, content: str, note: str = "") -> str:
    """Return content under a heading, and a note between the two."""
    return f"<h2>{text(title)}</h2>\n" + (note and f'<p class="quiet">{text(note)}</p>') + content
