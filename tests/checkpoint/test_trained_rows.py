"""A checkpoint knows the rows that it and its parents were trained on, and those of no other weights."""

import json
import resource

import numpy as np
import pytest
from factories import write_rows

from engine.checkpoint import trained_rows
from engine.checkpoint.trained_rows import TrainedRows
from engine.score.records import read_hashes, read_items


def some_rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def write_checkpoint(path, rows: TrainedRows) -> None:
    rows.save(trained_rows.rows_file(path))
    path.with_suffix(".json").write_text(json.dumps({"trained_rows": rows.entry(), "weights": "w"}))


def test_a_childs_rows_are_its_own_and_its_parents(tmp_path):
    parent = str(tmp_path / "pretrain.pth")
    first = trained_rows.collect(lambda: some_rows(5, 3, 5), None)
    write_checkpoint(tmp_path / "pretrain.pth", first)
    child = trained_rows.collect(lambda: some_rows(9, 3), (parent, "w"))
    assert child.hashes.tolist() == [3, 5, 9] and child.is_complete and child.hashes.dtype == np.uint64
    assert child.overlap(some_rows(9, 9, 4, 2**64 - 1)) == {"trained_on": 2, "of": 4, "is_complete": True}
    (tmp_path / "pretrain.rows.npy").unlink()
    orphan = trained_rows.collect(lambda: some_rows(9, 3), (parent, "w"))
    assert orphan.hashes.tolist() == [3, 9] and not orphan.is_complete
    assert trained_rows.collect(None, (parent, "w")) is None


def test_rows_that_are_not_of_the_weights_are_not_read(tmp_path):
    path, file = tmp_path / "SFT.pth", tmp_path / "SFT.rows.npy"
    rows = TrainedRows(some_rows(1, 2, 3), is_complete=False)
    write_checkpoint(path, rows)
    again = trained_rows.read(path, "w")
    assert again.hashes.tolist() == [1, 2, 3] and not again.is_complete
    assert trained_rows.read(path, "other weights") is None
    content = file.read_bytes()
    for damaged in (content[:-1], content[:20], b"", content[:-1] + b"x", b"PK\3\4"):
        file.write_bytes(damaged)
        assert trained_rows.read(path, "w") is None
    TrainedRows(some_rows(1, 2), is_complete=False).save(file)  # of a run that was killed before it saved weights
    assert trained_rows.read(path, "w") is None
    file.write_bytes(content)
    path.with_suffix(".json").unlink()
    assert trained_rows.read(path, "w") is None


@pytest.mark.parametrize("limit, expected", [(0, 2), (2, 1)])
def test_scored_questions_are_no_rows_of_training(tmp_path, limit, expected):
    question = {"question": "q", "choices": ["a", "b"], "answer": 0}
    path = write_rows(tmp_path / "rows.jsonl", [question, {"text": "a"}, {}, {"text": "b"}, *[question] * 3])
    assert len(read_hashes(path, read_items(path, limit))) == expected


def test_rows_on_a_full_disk_name_file_reason_and_flag(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/SFT\.rows\.npy: File too large; .* by --save_dir"):
            TrainedRows(some_rows(*range(1000)), is_complete=True).save(tmp_path / "SFT.rows.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
