"""Token F1 equals SQuAD's for English, and differs from it where docs/evaluation.md says."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.score.token_f1 import token_f1


def squad_f1(prediction, reference, articles=True):
    """Compute SQuAD's published metric: lower case, no punctuation, no articles, words by space."""

    def tokens(text):
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return (re.sub(r"\b(a|an|the)\b", " ", text) if articles else text).split()

    left, right = tokens(prediction), tokens(reference)
    same = sum((Counter(left) & Counter(right)).values())
    if not left or not right:
        return float(left == right)
    if same == 0:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


ENGLISH = [
    "",
    "!",
    "Paris",
    "in Paris, France",
    "It's well-known: he lives in Paris.",
    "don't (ever) go; U.S.",
    "Two boats\n came",
    "covid19 mp3 x2",
    "boats boats came",
    "in 1999 two boats came",
    "1,234 boats",
]


@pytest.mark.parametrize("prediction", ENGLISH)
@pytest.mark.parametrize("reference", ENGLISH)
def test_token_f1_of_english_equals_squads(prediction, reference):
    assert token_f1(prediction, reference) == pytest.approx(squad_f1(prediction, reference))


def test_token_f1_differs_from_squads_where_the_docs_say():
    assert token_f1("The red boat", "the boat!") == pytest.approx(squad_f1("The red boat", "the boat!", False))
    assert token_f1("5.1", "51") == 0 != squad_f1("5.1", "51")
    assert token_f1("-3", "3") == 0 != squad_f1("-3", "3")
    assert token_f1("红色的船", "红船") == pytest.approx(2 * 2 / 6)
    assert token_f1("yes—no", "yes no") == 1


@pytest.mark.parametrize(
    "prediction, reference, f1",
    [
        ("5.1", "1.5", 0),
        ("1,234", "1234", 1),
        ("1,234.50 m", "1234.50 m", 1),
        ("5.", "5", 1),
        ("5.1%", "5.1", 1),
        ("का", "क", 0),
        ("cafe\u0301", "café", 1),
        ("cafe", "café", 0),
        ("😀", "😢", 0),
        ("😀 好", "好", 2 / 3),
        ("２", "2", 1),
        ("", "。", 1),
        ("", "船", 0),
    ],
)
def test_token_f1_takes_numbers_signs_and_emoji_as_words(prediction, reference, f1):
    assert token_f1(prediction, reference) == pytest.approx(f1) == token_f1(reference, prediction)


@given(st.text(max_size=40), st.text(max_size=40))
def test_token_f1_is_a_symmetric_share_for_any_text(text, other):
    assert 0 <= token_f1(text, other) == token_f1(other, text) <= 1
