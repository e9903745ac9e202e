"""Several processes encode in order and in bounded memory."""

import sys
import tracemalloc

import pytest
from factories import write_rows

from engine.corpus import jsonl, worker_pool


def test_two_workers_write_bitwise_the_same_cache_as_one(build, monkeypatch):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 600)  # some fifty blocks, more than are in flight
    files = [[{"text": f"{name} {number} 号"} for number in range(400)] for name in "ab"]
    files = [[*rows[:17], "{broken", "{broken", *rows[17:300], "{broken", *rows[300:]] for rows in files]
    first, second = (build(*files, cache_dir=f"{count}", num_workers=count) for count in (1, 2))
    assert first.folder != second.folder and sum(source["counts"]["bad"] for source in first.meta["sources"]) == 6
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == sorted(path.name for path in second.folder.iterdir())
    assert all((first.folder / name).read_bytes() == (second.folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_file(build, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 100_000)
    path = write_rows(tmp_path / "rows.jsonl", [{"notes": "x" * 50_000, "text": "a"}] * 300)  # 15 MB
    tracemalloc.start()
    try:
        assert len(build(path, num_workers=workers)) == 300
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # 5 MB are the tokenizer
    finally:
        tracemalloc.stop()


def test_windows_is_asked_for_61_processes_at_most(monkeypatch):
    sizes = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", lambda workers, *rest: sizes.append(workers))
    worker_pool._open(64, None, ())
    worker_pool._open(8, None, ())
    assert sizes == [61, 8]
