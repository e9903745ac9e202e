"""tiktoken gives the ids of tokenizers, or is not used."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dataset import PretrainDataset
from engine.corpus import bpe, tiktoken_backend, token_cache
from engine.corpus.tiktoken_backend import TiktokenEncoder, fastest

tiktoken = pytest.importorskip("tiktoken")

ODD = [
    "",
    " ",
    "\n \t  x",
    " " * 20_000 + "y",
    "a" * 20_000,
    "雨" * 20_000,
    "don't  WE'LL",
    "<s>user</s><think>",
    "१२३ ①½",
    "👩‍👩‍👧 e\u0301",
    "\x00\ufeff\u2028",
    "1234567",
    "x\r\n\r\n  y",
]


def ids(given, texts):
    return [list(encoding.ids) for encoding in given.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.fixture(scope="module", params=["committed", "tags are tokens"])
def both(request, tokenizer):
    if request.param != "committed":
        learned = bpe.train_bpe(["the sea is calm and the boats come home 雨停了"] * 9, 320, tag_tokens=True)
        learned.encode_special_tokens = True
        return learned, fastest(learned)
    return tokenizer, fastest(tokenizer)


def test_it_is_used_and_odd_texts_get_the_ids_of_tokenizers(both):
    slow, fast = both
    assert isinstance(fast, TiktokenEncoder)
    assert [fast._encode(text) for text in ODD] == ids(slow, ODD) == ids(fast, ODD)
    assert fast.is_trusted


@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=st.text() | st.text(alphabet="ab 雨1'\n<>/think", max_size=60))
def test_any_text_gets_the_ids_of_tokenizers(both, text):
    slow, fast = both
    assert [fast._encode(text)] == ids(slow, [text])


def test_a_difference_is_reported_and_tokenizers_encodes_the_rest(tokenizer, capsys):
    ranks, _ = tiktoken_backend._ranks(json.loads(tokenizer.to_str()))
    longest = max(ranks, key=len)
    del ranks[longest]
    fast = TiktokenEncoder(
        tokenizer,
        tiktoken.Encoding("other", pat_str=tiktoken_backend.PIECE_PATTERN, mergeable_ranks=ranks, special_tokens={}),
        set(),
    )
    assert ids(fast, [longest.decode()]) == ids(tokenizer, [longest.decode()]) and not fast.is_trusted
    assert "tokenizers encodes the rest" in capsys.readouterr().err


def test_a_difference_in_the_rows_is_found_there(tokenizer, capsys):
    fast = fastest(tokenizer)

    def wrong(text):
        return [1] if text == "海" else TiktokenEncoder._encode(fast, text)

    fast._encode = wrong
    assert ids(fast, ["a", "海", "b"]) == ids(tokenizer, ["a", "海", "b"])
    assert "differ on '海'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "NFC"}},
        {"model": {"dropout": 0.1}},
        {"model": {"merges": lambda merges: merges[::-1]}},
    ],
    ids=["other words", "a normaliser", "dropout", "another order"],
)
def test_a_vocabulary_that_works_in_another_way_is_left_to_tokenizers(tokenizer, change):
    described = json.loads(tokenizer.to_str())
    for part, value in change.items():
        if part == "model":
            name, wanted = next(iter(value.items()))
            described["model"][name] = wanted(described["model"][name]) if callable(wanted) else wanted
        else:
            described[part] = value
    other = Tokenizer.from_str(json.dumps(described))
    assert fastest(other) is other


def test_the_cache_is_the_same_with_and_without_it(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{text}第{n}天 the {n}"}) + "\n" for n, text in enumerate(ODD * 9)))
    monkeypatch.setattr(token_cache, "TIKTOKEN_MIN_BYTES", path.stat().st_size)
    with_it = token_cache.open_or_build([path], PretrainDataset, tokenizer, cache_dir=tmp_path / "with")
    assert isinstance(token_cache._dataset.tokenizer, TiktokenEncoder)
    monkeypatch.setattr(token_cache, "TIKTOKEN_MIN_BYTES", path.stat().st_size + 1)
    without = token_cache.open_or_build([path], PretrainDataset, tokenizer, cache_dir=tmp_path / "without")
    assert token_cache._dataset.tokenizer.to_str() == tokenizer.to_str()
    assert np.array_equal(with_it.ids, without.ids) and np.array_equal(with_it.offsets, without.offsets)


@pytest.mark.parametrize("is_installed", [True, False], ids=["with tiktoken", "without"])
def test_missing_tiktoken_is_reported_once_where_it_costs_time(tokenizer, tmp_path, monkeypatch, capsys, is_installed):
    if not is_installed:
        monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setattr(token_cache, "TIKTOKEN_MIN_BYTES", 0)
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        path.write_text(json.dumps({"text": f"the boats come home {path.stem}"}), encoding="utf-8")
    size = sum(path.stat().st_size for path in paths)
    for limit, is_much in ((size, False), (size - 1, True)):
        monkeypatch.setattr(tiktoken_backend, "HINT_BYTES", limit)
        for _ in range(2):  # built, and opened again
            token_cache.open_or_build(paths, PretrainDataset, tokenizer, cache_dir=tmp_path / f"{limit}")
        told = capsys.readouterr().out.count("pip install -e .[fast-tokenizer]")
        assert told == (is_much and not is_installed)
