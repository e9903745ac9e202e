"""What is held out is held out everywhere: across files, for the tokenizer too, and never more than half."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import PretrainDataset
from engine.corpus.bpe import scan_corpus
from engine.corpus.held_out import held_out_hashes, line_hash
from engine.corpus.token_cache import open_or_build


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows of a file that is read alone are held out, a boolean (n,)."""
    return np.isin(hashes, held_out_hashes([hashes], fraction))


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def build(tokenizer, tmp_path, without_tiktoken):
    return lambda *paths: open_or_build(paths, PretrainDataset, tokenizer, cache_dir=tmp_path / "cache")


def test_a_row_that_one_file_holds_out_is_trained_on_from_no_other_and_the_tokenizer_does_not_see_it(build, tmp_path):
    a = write(tmp_path / "a.jsonl", [f"boat {number}" for number in range(200)])
    b = write(tmp_path / "b.jsonl", [f"boat {number}" for number in range(1500)])
    cache = build(a, b)
    training, validation = (set(cache.hashes[part].tolist()) for part in cache.split(0.01))
    assert not training & validation and len(validation) >= 64
    alone = build(a)
    assert set(alone.hashes[alone.split(0.01)[1]].tolist()) <= validation
    assert scan_corpus([a, b], 0.01, strict=True)[1] == validation


@pytest.mark.parametrize("equal, others, kept", [(20, 0, 0), (61, 39, 39), (50, 50, 50), (2, 98, 50), (1, 0, 0)])
def test_of_equal_rows_all_or_none_are_held_out_and_never_more_than_half(equal, others, kept):
    hashes = np.array([0] * equal + list(range(1, others + 1)), np.uint64)
    mask = held_out(hashes, 0.01)
    assert mask.sum() == kept and mask[:equal].all() == mask[:equal].any()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=4), st.sampled_from([0.01, 0.3, 0.9]))
def test_of_no_file_more_than_half_is_held_out_whatever_stands_in_the_others(files, fraction):
    files = [np.array(rows, np.uint64) for rows in files]
    kept = held_out_hashes(files, fraction)
    assert (np.diff(kept.astype(np.int64)) > 0).all()
    assert all(2 * np.isin(rows, kept).sum() <= len(rows) for rows in files)
    assert len(held_out_hashes(files, 0)) == 0


def some_hashes(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize(
    "rows, fraction, kept",
    [
        (10_000, 0.01, 100),
        (1000, 0.01, 64),
        (500_000, 0.01, 2000),
        (100, 0.01, 50),
        (11, 0.5, 5),
        (1000, 0.9, 500),
        (1000, 0, 0),
        (1, 0.1, 0),
        (0, 0.1, 0),
    ],
)
def test_at_least_64_rows_are_held_out_at_most_2000_and_never_more_than_half(rows, fraction, kept):
    assert held_out(some_hashes(rows), fraction).sum() == kept


def test_the_same_content_is_held_out_whatever_the_order_and_duplicates_stay_together():
    hashes = np.tile(some_hashes(5000), 3)
    mask = held_out(hashes, 0.01)
    assert mask.any() and (mask[:5000] == mask[5000:10_000]).all() and (mask[:5000] == mask[10_000:]).all()
    assert (held_out(hashes[::-1], 0.01)[::-1] == mask).all()
    assert line_hash(b'{"text": "a"}') == line_hash(b'{"text": "a"}\r\n') != line_hash(b'{"text": "b"}')


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match=f"val_fraction={fraction}"):
        held_out(some_hashes(10), fraction)
