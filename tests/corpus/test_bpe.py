"""The tokenizer recipe: what it writes loads everywhere, loses nothing, and learns from what it may."""

import json
import resource

import numpy as np
import pytest
from factories import TOKENIZER_DIR, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import train_tokenizer
from engine.corpus import bpe
from engine.corpus.held_out import held_out_hashes
from engine.reasoning import TAGS
from engine.tokenizer import load_tokenizer

MIXED = [
    "海绵宝宝住在菠萝里。",
    "Hello, world! 1234\t\n  x",
    "🐙🧽 é ß 한국어",
    "a<b>c</d> x > y",
    "\x00\x7f\u3000 龘𠮷",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """400 rows: the first 200 of one word, the others of another."""
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    rows = [{"text": f"{'海绵宝宝' if number < 200 else 'jellyfish'} {number:03}."} for number in range(400)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def learn(corpus, folder, *flags, vocab_size=300):
    arguments = ["--data_path", corpus, "--save_dir", folder, "--vocab_size", vocab_size, *flags]
    train_tokenizer.main([str(argument) for argument in arguments])
    return load_tokenizer(folder)


@pytest.mark.parametrize("flags", [[], ["--tag_tokens"]], ids=["plain", "tag tokens"])
def test_what_it_writes_loads_here_and_in_transformers_with_the_same_ids(corpus, tmp_path, flags):
    learned, reference = learn(corpus, tmp_path, *flags), AutoTokenizer.from_pretrained(tmp_path)
    assert [learned.token_to_id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert (reference.unk_token_id, reference.bos_token_id, reference.eos_token_id, reference.pad_token_id) == (
        0,
        1,
        2,
        0,
    )
    assert learned.get_vocab_size() == len(reference) == 300
    for text in [*MIXED, "海绵宝宝 jellyfish", "<think>想</think>"]:
        ids = learned.encode(text, add_special_tokens=False).ids
        assert ids == reference(text, add_special_tokens=False)["input_ids"]
        assert learned.decode(ids, skip_special_tokens=False) == reference.decode(ids) == text
    assert len(learned.encode("海绵宝宝", add_special_tokens=False).ids) < 12  # twelve bytes: some pairs were merged


def test_tag_tokens_are_one_token_each_and_stay_visible(corpus, tmp_path):
    tokenizer = learn(corpus, tmp_path, "--tag_tokens")
    ids = tokenizer.encode("".join(TAGS), add_special_tokens=False).ids
    assert ids == [tokenizer.token_to_id(tag) for tag in TAGS]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(TAGS)


def scanned(rows, first_hash=0):
    """Rows of so many bytes each, with random hashes."""
    hashes = np.random.default_rng(first_hash).integers(0, 2**64, len(rows), dtype=np.uint64)
    return bpe.ScannedFile(hashes, np.array(rows, np.uint64), np.zeros(len(rows), bool))


NONE = np.empty(0, np.uint64)


def test_max_bytes_bounds_the_texts_and_takes_no_period_of_the_file(tokenizer, tmp_path, monkeypatch, capsys):
    """Translation pairs: every second row is in one language."""
    learned = []
    monkeypatch.setattr(train_tokenizer, "train_bpe", lambda texts, *_: learned.extend(texts) or tokenizer)
    rows = [{"text": f"{('abc', 'xyz')[number % 2]} {number:03}"} for number in range(800)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    learn(path, tmp_path, "--max_bytes", 2800, "--val_fraction", 0)
    num_bytes = sum(len(text.encode()) for text in learned)
    assert 2790 < num_bytes <= 2800 and len(learned) == len(set(learned))
    assert 160 < sum(text.startswith("abc") for text in learned) < 240
    assert f"learning from {num_bytes:,} of 5,600 bytes of {path}" in capsys.readouterr().out


@pytest.mark.parametrize("period", [2, 3, 7])
def test_rows_that_alternate_are_drawn_in_proportion(period):
    """Translation pairs, or long rows among short ones: every second row is of one kind."""
    file = scanned([300 if number % period == 0 else 30 for number in range(6000)])
    total = int(file.num_bytes.sum())
    drawn = np.isin(file.hashes, bpe.draw_rows([file], NONE, total // period)[0])
    assert abs(drawn[::period].mean() - 1 / period) < 0.05 and abs(drawn.mean() - 1 / period) < 0.05
    assert 0.98 * total // period < file.num_bytes[drawn].sum() <= total // period


def test_every_file_is_drawn_from_in_proportion_and_within_max_bytes():
    files = [scanned([40] * 5000, 1), scanned([40] * 500, 2), scanned([4000] * 50, 3), scanned([], 4)]
    parts = []
    for file, drawn in zip(files, bpe.draw_rows(files, NONE, 100_000), strict=True):
        parts.append(file.num_bytes[np.isin(file.hashes, drawn)].sum())
    assert sum(parts) <= 100_000
    assert np.allclose(parts, [47_619, 4_761, 47_619, 0], atol=4000)
    everything = bpe.draw_rows(files, files[0].hashes, 10**9)
    assert [len(drawn) for drawn in everything] == [0, 500, 50, 0]


def test_max_bytes_counts_none_of_the_rows_that_are_held_out():
    files = [scanned([40] * 500, 1), scanned([40] * 500, 2)]
    drawn = bpe.draw_rows(files, files[0].hashes[:400], 20_000)
    assert 19_900 <= 40 * sum(map(len, drawn)) <= 20_000


def test_the_rows_drawn_are_not_those_that_would_be_held_out():
    file = scanned([40] * 5000)
    drawn = bpe.draw_rows([file], NONE, 20_000)[0]
    assert len(drawn) == 500 and np.isin(drawn, held_out_hashes([file.hashes], 0.1)).mean() < 0.2


def test_copies_are_drawn_together_and_rows_larger_than_the_share_are_not():
    hashes, num_bytes = np.array([7] * 90 + list(range(10)), np.uint64), np.array([10] * 99 + [500], np.uint64)
    file = bpe.ScannedFile(hashes, num_bytes, np.zeros(100, bool))
    drawn = bpe.draw_rows([file], NONE, 300)[0]
    assert 7 not in drawn and 9 not in drawn and len(drawn) == 8


def test_held_out_rows_are_not_learned_from(corpus):
    rows = bpe.scan_corpus([corpus], strict=True)
    hidden = held_out_hashes([rows[0].hashes], 0.1)
    learned = bpe.draw_rows(rows, hidden, 10**9)
    seen, unseen = (list(bpe.read_texts([corpus], part)) for part in (learned, [hidden]))
    assert len(unseen) == 64 and len(seen) == 336 and not set(seen) & set(unseen)


@pytest.mark.parametrize(
    "max_bytes, report", [(1000, "texts survive a round trip"), (10**6, "no report: every row is learned from")]
)
def test_the_report_is_on_rows_that_were_not_learned_from(corpus, tmp_path, capsys, max_bytes, report):
    learn(corpus, tmp_path, "--val_fraction", 0, "--max_bytes", max_bytes)
    assert report in capsys.readouterr().out


def test_a_file_given_twice_is_learned_from_twice(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    learned = []
    monkeypatch.setattr(train_tokenizer, "train_bpe", lambda texts, *_: learned.extend(texts) or tokenizer)
    learn(corpus, tmp_path)
    once = sorted(2 * learned)
    learned.clear()
    learn(corpus, tmp_path, "--overwrite", "--data_path", corpus, corpus)
    assert sorted(learned) == once and "the same file 2 times" in capsys.readouterr().out


def test_a_tokenizer_that_is_there_is_replaced_only_when_asked(corpus, tmp_path):
    learn(corpus, tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="tokenizer.json exists.*--overwrite"):
        learn(corpus, tmp_path, vocab_size=280)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert learn(corpus, tmp_path, "--overwrite", vocab_size=280).get_vocab_size() == 280


@pytest.mark.parametrize("size", [259, 65537])
def test_a_vocabulary_that_cannot_be_is_refused(corpus, tmp_path, size):
    with pytest.raises(ValueError, match=f"--vocab_size {size}"):
        learn(corpus, tmp_path, vocab_size=size)


def test_the_committed_tokenizer_spells_the_tags_with_4_4_5_5_tokens(tokenizer):
    assert tokenizer.get_vocab_size() == 6400
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert [len(tokenizer.encode(tag, add_special_tokens=False).ids) for tag in TAGS] == [4, 4, 5, 5]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.text(max_size=30))
def test_any_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("海a 。.\n\r"), st.sampled_from([1, 2, 510, 511, 512, 513, 1100])), max_size=8)
)
def test_pieces_join_to_the_text_and_none_is_longer_than_512(runs):
    text = "".join(character * count for character, count in runs)
    pieces = bpe.PIECE_RE.findall(text)
    assert "".join(pieces) == text and all(len(piece) <= 512 for piece in pieces)
    assert all(not set(piece[:-1]) & set("。.\n") for piece in pieces)


def test_a_tokenizer_on_a_full_disk_leaves_the_old_one_and_says_why(tmp_path):
    old = bpe.train_bpe(["the sea is blue"], 270, tag_tokens=False)
    bpe.save_tokenizer(old, tmp_path / "new")
    written = (tmp_path / "new/tokenizer.json").read_bytes()
    old.save(str(tmp_path / "theirs.json"))
    assert written == (tmp_path / "theirs.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/new/tokenizer\.json: File too large"):
            bpe.save_tokenizer(load_tokenizer(TOKENIZER_DIR), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "new/tokenizer.json").read_bytes() == written
