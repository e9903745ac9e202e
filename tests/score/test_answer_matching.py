"""The judge: what people write for one answer is one answer, what differs differs, and only the answer counts."""

import json
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.score import answer_matching, token_f1

TABLE = [
    json.loads(line)
    for line in Path(__file__).with_name("answers_table.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: f"{pair['given']}_{pair['wanted']}")
def test_a_pair_of_answers_is_equal_or_not_as_the_table_says_in_both_orders(pair):
    assert answer_matching.answers_match(pair["given"], pair["wanted"]) is pair["same"]
    assert answer_matching.answers_match(pair["wanted"], pair["given"]) is pair["same"]


def test_the_table_holds_150_different_pairs_and_both_kinds():
    assert len({(pair["given"], pair["wanted"]) for pair in TABLE}) == len(TABLE) >= 150
    assert sum(pair["same"] for pair in TABLE) >= 100 and sum(not pair["same"] for pair in TABLE) >= 50


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=string.printable + "½²–【】（）答案是选\\{}^_三万", max_size=24))
def test_what_the_judge_calls_equal_is_equal_the_other_way_round_too(text):
    for pair in TABLE[::20]:
        assert answer_matching.answers_match(text, pair["wanted"]) == answer_matching.answers_match(
            pair["wanted"], text
        )
    assert answer_matching.answers_match(text, text)


# ------------------------------------------------------------------------------------ the thought and the answer

THOUGHT = "<think>\n先试 <answer>5</answer> 不对，是七。\n</think>\n"
GOOD = "<think>想</think>\n<answer>7</answer>"


@pytest.mark.parametrize(
    "answer, correct",
    [
        (THOUGHT + "<answer>7</answer>", 1),
        (THOUGHT + "<answer>5</answer>", 0),
        (THOUGHT + "所以答案是 7", 1),
        ("<think>a</think> b </think><answer>7</answer>", 1),
        ("7", 1),
        ("想。</think>7", 1),
        ("<answer>7</answer>", 1),
        ("<think>所以答案是7", 0),
        ("<think><answer>7</answer>", 0),
        ("<answer>7</answer><think>想</think>", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("reference", [GOOD, THOUGHT + "<answer>7</answer>", "<answer>7</answer>", "想</think>7"])
def test_the_answer_is_what_stands_behind_the_thought(reference, answer, correct):
    assert answer_matching.judge(answer, reference)["correct"] == correct


@pytest.mark.parametrize(
    "reference",
    [
        GOOD,
        THOUGHT + "<answer>7</answer>",
        "<answer>7</answer>",
        "想</think>7",
        "<think>想</think>",
        "<think>没完",
        "<answer>7</answer><think>想</think>",
        "<think></think><answer></answer>",
        "七",
        "The <b>tag</b>.",
        "。",
    ],
)
def test_who_repeats_the_reference_word_for_word_gets_every_mark(reference):
    assert set(answer_matching.judge(f" {reference}\n", reference).values()) == {1.0}


def test_only_a_reference_of_the_form_asks_for_the_form():
    assert answer_matching.judge("7", GOOD) == {"well_formed": 0.0, "correct": 1.0}
    assert answer_matching.judge(GOOD, "想</think>7") == {"correct": 1.0}
    assert (
        answer_matching.judge("", "<think>没完")
        == answer_matching.judge("<think></think>", "<think>没完")
        == {"correct": 0.0}
    )


def test_a_reference_without_tags_is_compared_with_what_is_inside_the_answer():
    assert answer_matching.judge("<think>她住海边。</think>\n<answer>\n码头\n</answer>", "码头") == {
        "exact": 1.0,
        "f1": 1.0,
    }
    assert answer_matching.judge("<think>码头</think><answer>灯塔</answer>", "码头") == {"exact": 0.0, "f1": 0.0}
    assert answer_matching.judge("<think>码头", "码头") == {"exact": 0.0, "f1": 0.0}
    assert answer_matching.judge("码头", "码头") == {"exact": 1.0, "f1": 1.0}


# ------------------------------------------------------------------------------------------------- token F1


def squad_f1(given, wanted, articles=True):
    """SQuAD's published algorithm: lower case, no punctuation, no articles, words by space."""

    def tokens(text):
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return (re.sub(r"\b(a|an|the)\b", " ", text) if articles else text).split()

    ours, theirs = tokens(given), tokens(wanted)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
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


@pytest.mark.parametrize("given", ENGLISH)
@pytest.mark.parametrize("wanted", ENGLISH)
def test_token_f1_of_english_is_squads(given, wanted):
    assert token_f1.token_f1(given, wanted) == pytest.approx(squad_f1(given, wanted))


def test_token_f1_differs_from_squads_where_the_docs_say():
    assert token_f1.token_f1("The red boat", "the boat!") == pytest.approx(squad_f1("The red boat", "the boat!", False))
    assert token_f1.token_f1("5.1", "51") == 0 != squad_f1("5.1", "51")
    assert token_f1.token_f1("-3", "3") == 0 != squad_f1("-3", "3")
    assert token_f1.token_f1("红色的船", "红船") == pytest.approx(2 * 2 / 6)
    assert token_f1.token_f1("yes—no", "yes no") == 1


@pytest.mark.parametrize(
    "given, wanted, f1",
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
    ],
)
def test_numbers_marks_and_emoji_are_words(given, wanted, f1):
    assert token_f1.token_f1(given, wanted) == pytest.approx(f1) == token_f1.token_f1(wanted, given)
