"""Shingles read the same words out of every spelling, and MinHash finds texts that share most of them."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus import shingles
from engine.corpus.shingles import make_shingles, read_units, sign_many

SPELLINGS = [
    ("头发干了，里面还有3台电脑。", "頭髮乾了!裡面 還有３臺電腦"),
    ("The ﬁle is 5 ㎞ away", "the FILE is:\n5 km - away"),
    ("Ca\u0301fe\u0301 “Müller”", "cáfé müller"),
    ("他看著窗外", "他看着窗外"),
    ("½ of it…", "1⁄2 of it"),
]
texts = st.lists(st.text(st.sampled_from("ab 海，é½\n1+ก"), max_size=12), max_size=6)


def units_of(text: str) -> list[int]:
    return read_units([text]).hashes.tolist()


@pytest.mark.parametrize("spelling, other", SPELLINGS)
def test_units_are_equal_for_all_spellings(spelling, other):
    assert units_of(spelling) == units_of(other)


@pytest.mark.parametrize(
    "text, num_units", [("你好 world", 3), ("3+4=7", 5), ("สวัสดี", 6), ("don't", 2), ("안녕 하세요", 2)]
)
def test_units_are_characters_where_no_space_separates_words(text, num_units):
    assert len(units_of(text)) == num_units


def test_units_know_numbers_in_digits_and_in_chinese():
    assert read_units(["一 2 three ４"]).are_numbers.tolist() == [True, True, False, True]


@settings(max_examples=25, deadline=None)
@given(texts)
def test_units_of_many_texts_are_those_of_each(texts):
    """Nothing reaches from a text into its neighbor: no word, no shingle, no normalization."""
    units = read_units(texts)
    parts = np.split(units.hashes, units.ends)[:-1]
    assert [part.tolist() for part in parts] == [units_of(text) for text in texts]
    joined = make_shingles(units)
    parts = np.split(joined.hashes, joined.ends)[:-1]
    assert [part.tolist() for part in parts] == [make_shingles(read_units([text])).hashes.tolist() for text in texts]


def test_shingles_are_five_characters_or_three_words():
    assert len(make_shingles(read_units(["一二三四五六"])).hashes) == 2
    assert len(make_shingles(read_units(["one two three four"])).hashes) == 2
    assert len(make_shingles(read_units(["一二三四"])).hashes) == 0


def test_signatures_are_equal_on_every_machine_and_python():
    """The sums of one run, on CPython 3.11: rows that were signed elsewhere must be found."""
    bands = sign_many(["The quick brown fox jumps over the lazy dog", "敏捷的棕色狐狸跳过了那只懒惰的狗"])
    assert bands.sum(axis=1).tolist() == [17446109476062586643, 6479362092233545660]


def test_signatures_do_not_depend_on_how_texts_are_grouped(monkeypatch):
    rows = [f"第 {i} 行说的是一件别的事情，和 {i * i} 有关" for i in range(50)] + ["", "short"]
    bands = sign_many(rows)
    monkeypatch.setattr(shingles, "CHUNK_CHARACTERS", 40)
    assert (sign_many(rows) == bands).all()
    assert (bands[-2:] == 0).all() and bands[:-2].all()


def test_bands_are_shared_as_often_as_the_formula_says():
    """200 pairs of texts whose shingles have a similarity of about 0.8, and 200 of about 0.4."""
    random = np.random.default_rng(0)

    def shares(num_changed: int) -> float:
        rows = random.integers(0x4E00, 0x9000, (200, 300))
        other = rows.copy()
        other[:, 300 - num_changed :] = random.integers(0x4E00, 0x9000, (200, num_changed))
        bands = [sign_many(["".join(map(chr, row)) for row in part]) for part in (rows, other)]
        return (bands[0] == bands[1]).any(axis=1).mean()

    assert shares(33) > 0.95  # (296 - 33) / (296 + 33) = 0.8
    assert shares(125) < 0.2  # 0.41


def test_missing_opencc_is_named_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(ValueError, match="pip install opencc"):
        shingles._code_table.__wrapped__()
