"""Spellings of one answer match, other answers do not, and only the answer after the thought counts."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.score.answer_matching import answers_match, score_answer

LINES = Path(__file__).with_name("answers_table.jsonl").read_text(encoding="utf-8").splitlines()
TABLE = [json.loads(line) for line in LINES]
CHARACTERS = string.printable + "½²–【】（）答案是选\\{}^_三万"


@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: f"{pair['prediction']}_{pair['reference']}")
def test_answers_match_as_the_table_says_in_both_orders(pair):
    assert answers_match(pair["prediction"], pair["reference"]) is pair["same"]
    assert answers_match(pair["reference"], pair["prediction"]) is pair["same"]


def test_the_table_holds_150_different_pairs_of_both_kinds():
    assert len({(pair["prediction"], pair["reference"]) for pair in TABLE}) == len(TABLE) >= 150
    assert sum(pair["same"] for pair in TABLE) >= 100 and sum(not pair["same"] for pair in TABLE) >= 50


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=CHARACTERS, max_size=24) | st.text(max_size=40), st.text(max_size=40))
def test_answers_match_is_reflexive_and_symmetric_for_any_text(text, other):
    assert answers_match(text, text)
    for reference in [other, *(pair["reference"] for pair in TABLE[::20])]:
        assert answers_match(text, reference) is answers_match(reference, text)


# ------------------------------------------------------------------------------------------ thought and answer

THOUGHT = "<think>\n先试 <answer>5</answer> 不对，是七。\n</think>\n"
GOOD = "<think>想</think>\n<answer>7</answer>"


@pytest.mark.parametrize(
    "answer, well_formed, correct",
    [
        (GOOD, 1, 1),
        (f"\n{GOOD} ", 1, 1),
        (GOOD.replace("7", "7。"), 1, 1),
        (GOOD.replace("7", "8"), 1, 0),
        (GOOD + "完", 0, 1),
        ("<answer>7</answer>", 0, 1),
        (GOOD + GOOD, 0, 1),
        ("<think>" + GOOD, 0, 1),
        ("7", 0, 1),
        ("", 0, 0),
        ("<answer>7</answer><think>想</think>", 0, 0),
        (GOOD.removesuffix("</answer>"), 0, 0),
        (THOUGHT + "<answer>7</answer>", 0, 1),
        (THOUGHT + "<answer>5</answer>", 0, 0),
        (THOUGHT + "所以答案是 7", 0, 1),
        ("<think>a</think> b </think><answer>7</answer>", 0, 1),
        ("想。</think>7", 0, 1),
        ("<think>所以答案是7", 0, 0),
        ("<think><answer>7</answer>", 0, 0),
    ],
)
@pytest.mark.parametrize("reference", [GOOD, THOUGHT + "<answer>7</answer>", "<answer>7</answer>", "想</think>7"])
def test_score_answer_takes_the_answer_after_the_thought(reference, answer, well_formed, correct):
    expected = {"well_formed": well_formed, "correct": correct} if reference == GOOD else {"correct": correct}
    assert score_answer(answer, reference) == expected


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
def test_verbatim_copy_of_the_reference_scores_1_on_every_metric(reference):
    assert set(score_answer(f" {reference}\n", reference).values()) == {1.0}


@pytest.mark.parametrize("answer", ["", "<think></think>"])
def test_empty_answer_of_an_unfinished_thought_is_wrong(answer):
    assert score_answer(answer, "<think>没完") == {"correct": 0.0}


@pytest.mark.parametrize(
    "answer, score",
    [
        ("<think>她住海边。</think>\n<answer>\n码头\n</answer>", 1),
        ("<think>码头</think><answer>灯塔</answer>", 0),
        ("<think>码头", 0),
        (" 码头 \n", 1),
    ],
)
def test_reference_without_tags_is_compared_with_the_extracted_answer(answer, score):
    assert score_answer(answer, "码头") == {"exact_match": score, "f1": score}


def test_exact_match_ignores_surrounding_space_alone():
    assert score_answer("是。", "是") == {"exact_match": 0, "f1": 1}
