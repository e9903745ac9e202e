"""JSON of any layout gives its rows, in bounded memory, and names the line at which it is broken."""

import io
import json

import pytest

from engine.corpus import json_values
from engine.corpus.json_values import read_values

ROWS = [{"text": f'船 {number} \\ " ]}}', "id": number} for number in range(5)]
CHAT = {"messages": [{"id": 1, "role": "user", "content": "Hi"}, {"id": 2, "role": "assistant", "content": "Yes"}]}
COLUMNS = {key: {str(number): row[key] for number, row in enumerate(ROWS)} for key in ROWS[0]}
LAYOUTS = {
    "array in one line": json.dumps(ROWS),
    "array over many lines": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "two arrays": f"{json.dumps(ROWS[:2])}\n{json.dumps(ROWS[2:])}",
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "indented objects with commas": ",\n".join(json.dumps(row, indent=2) for row in ROWS) + ",",
    "objects in one line": "".join(map(json.dumps, ROWS)),
    "object of a list": json.dumps({"version": 1.5, "tags": ["a"], "data": ROWS, "note": "x"}),
    "object of two lists": json.dumps({"name": "sets", "train": ROWS[:3], "test": ROWS[3:]}, indent=1),
    "table by columns": json.dumps(COLUMNS),
    "table of lists": json.dumps({key: list(column.values()) for key, column in COLUMNS.items()}),
    "split table": json.dumps({"columns": [*ROWS[0]], "index": [0], "data": [[*row.values()] for row in ROWS]}),
    "object of objects": json.dumps({f"q{number}": row for number, row in enumerate(ROWS)}),
    "byte order marks": "".join(f"\ufeff{json.dumps(row)}\r\n" for row in ROWS),
}


@pytest.mark.parametrize("read_chars", [1, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_rows_wherever_a_read_ends(monkeypatch, layout, read_chars):
    if "list" not in layout:  # a list is known by what comes before it
        monkeypatch.setattr(json_values, "READ_CHARS", read_chars)
    assert list(read_values(io.StringIO(LAYOUTS[layout]), "rows.json")) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
def test_the_turns_of_a_chat_are_no_rows(indent):
    text = json.dumps(CHAT, indent=indent)
    assert list(read_values(io.StringIO(text), "chat.json")) == [CHAT]
    assert list(read_values(io.StringIO(text.replace("messages", "data")), "chat.json")) == CHAT["messages"]


def test_nan_is_null_and_what_is_no_object_is_left_to_the_count_of_rows():
    text = '[{"text": NaN}, "a text", 12, [1], null, -Infinity, 34]'
    values = list(read_values(io.StringIO(text), "rows.json"))
    assert values == [{"text": None}, "a text", 12, [1], None, -float("inf"), 34]


@pytest.mark.parametrize(
    "text, line, problem",
    [
        ('[{"text": "a"},\n{"text": "b"', 2, "it breaks off"),
        ('[{"text": "a"},\n\n {"text": "b', 3, "it breaks off"),
        ('[{"text": "a"},\n', 2, "it breaks off"),
        ('[\n{"text": "a"}\n{"text": "b"}]', 3, "',' is missing before '{\"text"),
        ('[\n{"text": "a"},\n{text: "a long sentence that is not quoted"}]', 3, "Expecting property name"),
        ('{"text": "a"}\nand a sentence that follows it', 2, "Expecting value"),
        ("[" * 100_000, 1, "recursion"),
    ],
)
def test_broken_json_names_its_line(text, line, problem):
    with pytest.raises(ValueError, match=f"rows.json:{line}: broken JSON: .*{problem}"):
        list(read_values(io.StringIO(text), "rows.json"))


def test_memory_does_not_grow_with_the_file_and_a_huge_value_is_refused(monkeypatch):
    monkeypatch.setattr(json_values, "READ_CHARS", 100)
    monkeypatch.setattr(json_values, "MAX_VALUE_CHARS", 1000)

    class Endless(io.StringIO):
        """An array without end, of which each read gives the next part."""

        given = 0

        def read(self, size):
            assert size <= 2000
            self.given += 1
            return "[" + '{"text": "a"},' * 10 if self.given < 50 else "9" * size

    rows = read_values(Endless(), "rows.json")
    with pytest.raises(ValueError, match="rows.json:1: broken JSON"):
        assert sum(1 for _ in rows) > 100
    with pytest.raises(ValueError, match=r"rows.json:1: .*more than 1,000 characters.*write the rows as JSONL"):
        list(read_values(io.StringIO('["' + "a" * 5000), "rows.json"))
