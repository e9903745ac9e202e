"""The tokenizer recipe: what it writes loads everywhere, loses nothing, and learns from what it may."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import train_tokenizer
from engine.corpus import bpe
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


def test_max_bytes_bounds_the_texts_and_spreads_them_over_the_file(corpus, tmp_path, monkeypatch, capsys):
    train, learned = bpe.train_bpe, []

    def watched(texts, *options):
        learned.extend(texts)
        return train(iter(learned), *options)

    monkeypatch.setattr(train_tokenizer, "train_bpe", watched)
    learn(corpus, tmp_path, "--max_bytes", 1000)
    assert 500 < sum(len(text.encode()) for text in learned) <= 1000
    numbers = [int(text.split()[1].strip(".")) for text in learned]
    assert numbers == sorted(set(numbers)) and all(
        any(first <= number < first + 100 for number in numbers) for first in (0, 100, 200, 300)
    )
    assert "learning from 1,000 of 6,200 bytes" in capsys.readouterr().out


def test_held_out_rows_are_not_learned_from(corpus):
    hidden = bpe.scan_corpus([corpus], 0.1, strict=True)[1]
    seen, unseen = (list(bpe.sample_texts([corpus], hidden, from_held_out=part)) for part in (False, True))
    assert len(unseen) == 64 and len(seen) == 336 and not set(seen) & set(unseen)


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
