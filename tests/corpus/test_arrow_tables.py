"""Tables of arrow become the rows that JSONL of the same content gives."""

import pytest

from engine.corpus.readers import find_files, parse_block, read_blocks

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")


def rows_of(path):
    (file,), _ = find_files([path])
    rows = []
    for block in read_blocks(file):
        rows += [row for _, row in parse_block(file, block)]
    return rows


def test_nan_and_nothing_are_no_cells(tmp_path):
    rows = [{"instruction": "Say", "input": float("nan"), "output": "Hi", "text": None}, dict.fromkeys(("text",))]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=None), tmp_path / "a.parquet")
    first, second = rows_of(tmp_path / "a.parquet")
    assert first == {"instruction": "Say", "output": "Hi"} and second["text"] == ""
