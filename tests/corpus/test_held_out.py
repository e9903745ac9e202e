"""A row that is held out is held out everywhere: across files, for the tokenizer too, and never more than half."""

import numpy as np
import pytest
from factories import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.bpe import scan_corpus
from engine.corpus.held_out import held_out_hashes, line_hash


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Return a mask of the rows of a file that is read alone which are held out, (n,) bool."""
    return np.isin(hashes, held_out_hashes([hashes], fraction))


def held(cache):
    """Return the content hashes that validation keeps, of each source file."""
    ends = np.cumsum([source["documents"] for source in cache.meta["sources"]])[:-1]
    is_held_out = np.zeros(len(cache), bool)
    is_held_out[cache.split(0.01)[1]] = True
    parts = zip(np.split(cache.hashes, ends), np.split(is_held_out, ends), strict=True)
    return [set(hashes[mask].tolist()) for hashes, mask in parts]


def numbered(count, word):
    return [{"text": f"{word} {number}"} for number in range(count)]


def test_a_row_held_out_of_one_file_is_trained_on_from_none(build, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", numbered(200, "boat"))
    b = write_rows(tmp_path / "b.jsonl", numbered(1500, "boat"))
    cache = build(a, b)
    training, validation = (set(cache.hashes[part].tolist()) for part in cache.split(0.01))
    assert not training & validation and len(validation) >= 64
    assert held(build(a))[0] <= validation
    assert scan_corpus([a, b], 0.01, strict=True)[1] == validation


def test_a_file_holds_out_the_same_rows_whatever_file_is_read_with_it(build, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [*numbered(300, "a"), {}])
    b = write_rows(tmp_path / "b.jsonl", numbered(40, "b"))
    of_a, of_b = held(build(a))[0], held(build(b))[0]
    assert [of_a, of_b] == held(build(a, b)) == held(build(b, a))[::-1]
    assert len(of_a) == 64 and len(of_b) == 20


def test_the_tokenizer_learns_from_the_rows_that_training_learns_from(build, tmp_path):
    rows = [*numbered(300, "a"), *numbered(9, "a")], numbered(200, "b")
    a = write_rows(tmp_path / "a.jsonl", [{}, *rows[0]])
    b = write_rows(tmp_path / "b.jsonl", rows[1])
    b.write_bytes(b"\xef\xbb\xbf" + b.read_bytes().replace(b"\n", b"\r\n\r\n"))
    size, hashes = scan_corpus([a, b], 0.01, strict=False)
    parts = held(build(a, b))
    assert hashes == set().union(*parts) and all(len(part) >= 60 for part in parts)
    assert size == sum(len(row["text"].encode()) for row in [*rows[0], *rows[1]])


@pytest.mark.parametrize("equal, others, expected", [(20, 0, 0), (61, 39, 39), (50, 50, 50), (2, 98, 50), (1, 0, 0)])
def test_of_equal_rows_all_or_none_are_held_out_and_never_more_than_half(equal, others, expected):
    hashes = np.array([0] * equal + list(range(1, others + 1)), np.uint64)
    mask = held_out(hashes, 0.01)
    assert mask.sum() == expected and mask[:equal].all() == mask[:equal].any()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=4), st.sampled_from([0.01, 0.3, 0.9]))
def test_of_no_file_more_than_half_is_held_out(files, fraction):
    files = [np.array(rows, np.uint64) for rows in files]
    hashes = held_out_hashes(files, fraction)
    assert (np.diff(hashes.astype(np.int64)) > 0).all()
    assert all(2 * np.isin(rows, hashes).sum() <= len(rows) for rows in files)
    assert len(held_out_hashes(files, 0)) == 0


def some_hashes(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize(
    "rows, fraction, expected",
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
def test_64_to_2000_rows_are_held_out_and_never_more_than_half(rows, fraction, expected):
    assert held_out(some_hashes(rows), fraction).sum() == expected


def test_held_out_rows_depend_on_content_alone():
    hashes = np.tile(some_hashes(5000), 3)
    mask = held_out(hashes, 0.01)
    assert mask.any() and (mask[:5000] == mask[5000:10_000]).all() and (mask[:5000] == mask[10_000:]).all()
    assert (held_out(hashes[::-1], 0.01)[::-1] == mask).all()
    assert line_hash(b'{"text": "a"}') == line_hash(b'{"text": "a"}\r\n') != line_hash(b'{"text": "b"}')


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match=f"val_fraction={fraction}"):
        held_out(some_hashes(10), fraction)
