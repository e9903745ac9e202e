"""The report of prepare_data.py is one page that loads nothing, names every count, and shows rows as text."""

import copy
import re

import pytest
from test_report import HOSTILE, Page

from engine.pages.html import bars
from engine.pages.prepared import MOST_FILES, mark_difference, write_report


def example(before, after="", line=7):
    return {"file": HOSTILE, "line": line, "before": before, "after": after}


def source(name, rows, kept, **dropped):
    known = {"name": name, "type": "jsonl", "encoding": "gb18030", "bytes": 1000 * rows + 1}
    return known | {"rows": rows, "kept": kept, "dropped": dropped, "notes": {"schema text": kept, f"field {name}": 1}}


PREPARED = {
    "libraries": {"ftfy": "6.3.1", "python": "3.11.7"},
    "tokenizer": "5a80f8ee99a2",
    "files": [source(HOSTILE, 3017, 2011, near_repeat=1005, empty_row=1), source("town.jsonl", 523, 523)],
    "left": [[f"{HOSTILE}.png", "an image <i>"]],
    "rules": [
        {
            "name": "nfc",
            "on": True,
            "changed": 419,
            "dropped": 0,
            "examples": [example(f"e\u0301{HOSTILE}", f"é{HOSTILE}")],
        },
        {"name": "near_repeat", "on": True, "changed": 0, "dropped": 1005, "examples": [example(HOSTILE * 3)]},
        {"name": "<u>new_rule", "on": False, "changed": 0, "dropped": 0, "examples": []},
    ],
    "outputs": {
        "pretrain.jsonl": {"rows": 1831, "bytes": 777_777, "characters": 654_321},
        "sft_512.jsonl": {"rows": 703, "bytes": 88_888, "tokens": 23_456},
    },
    "cut": 11,
    "lengths": {"pretrain.jsonl": [[100, 1700], [300, 131], [None, 0]], "sft_512.jsonl": [[64, 601], [None, 102]]},
    "languages": {"zh": 1999, "en": 533, HOSTILE: 2},
    "repeats": {
        "exact": 31,
        "near": 974,
        "held_out": {"exact": 5, "near": 6, "contained": 8},
        "clusters": [
            {
                "rows": 211,
                "kept": {"file": HOSTILE, "line": 1, "text": HOSTILE},
                "dropped": [{"file": "town.jsonl", "line": 1234, "text": f"{HOSTILE}!"}],
            }
        ],
    },
}


def page_of(prepared, folder) -> Page:
    path = folder / "report.html"
    write_report(prepared, path)
    return Page(path.read_text(encoding="utf-8"))


def numbers_in(value) -> set[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(numbers_in, value))
    return {value} if type(value) is int else set()


def test_page_names_every_count_and_every_file(tmp_path):
    words = "\n".join(page_of(PREPARED, tmp_path).texts)
    shown = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", words)}
    assert numbers_in(PREPARED) - shown == set()
    assert {3540, 2534} <= shown  # all rows, and those that are kept
    for fact in (
        "town.jsonl",
        "jsonl, gb18030",
        "an image <i>",
        "ftfy",
        "5a80f8ee99a2",
        "Chinese",
        "Off: <u>new_rule.",
    ):
        assert fact in words, fact


def test_page_is_complete_loads_nothing_and_keeps_text_as_text(tmp_path):
    page = page_of(PREPARED, tmp_path)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.open == [] and page.external == []
    assert "http" not in content and "url(" not in content and "@import" not in content
    assert sum(HOSTILE in text for text in page.texts) >= 8


def test_page_of_nothing_is_a_page(tmp_path):
    empty = copy.deepcopy(PREPARED) | {"files": [], "left": [], "outputs": {}, "lengths": {}, "languages": {}, "cut": 0}
    empty["repeats"]["clusters"] = []
    assert "0 of 0 rows of 0 files were kept." in page_of(empty, tmp_path).texts


def test_files_beyond_the_longest_table_are_counted_in_one_row(tmp_path):
    files = [source(f"note {number}", number + 1, number) for number in range(MOST_FILES + 3)]
    texts = page_of(PREPARED | {"files": files}, tmp_path).texts
    row = texts.index("3 other files")
    cells = [text for text in texts[row : row + 20] if text.strip()]
    assert cells[2:5] == ["6,003", "6", "3"]  # bytes, rows, kept of the three smallest
    assert "note 3" in texts and "note 2" not in texts


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ("a<b", "a>b", ("a<del>&lt;</del>b", "a<ins>&gt;</ins>b")),
        ("ab", "abc", ("ab", "ab<ins>c</ins>")),
        ("xé" + "z" * 198, "é" + "z" * 199, ("<del>x</del>é" + "z" * 198, "é" + "z" * 199)),
        ("", "", ("", "")),
    ],
    ids=["changed", "added", "a window that moves", "nothing"],
)
def test_difference_is_marked_on_both_sides(before, after, expected):
    assert mark_difference(before, after) == expected


def test_bars_are_as_long_as_their_counts():
    drawn = bars("rows", [("few", 25), ("many", 100), ("none", 0)])
    assert re.findall(r"width: ([\d.]+)%", drawn) == ["25.0", "100.0"] and "<b>0</b>" in drawn
    assert "width" not in bars("rows", [("none", 0)])
