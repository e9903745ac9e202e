"""The judge reads answers as a person would: the same answer in another form is correct, another one is not."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.score import judge

GOOD = "<think>\n想\n</think>\n<answer>\n汪晴晴\n</answer>"


@pytest.mark.parametrize("answer, well_formed, correct", [
    (GOOD, True, True), (f"\n{GOOD} ", True, True), (GOOD.replace("汪晴晴", "汪晴晴。"), True, True),
    (GOOD.replace("汪晴晴", "许朵朵"), True, False), (GOOD + "完", False, True),
    ("<answer>汪晴晴</answer>", False, True),
    (GOOD + GOOD, False, True), ("<think>" + GOOD, False, True), ("汪晴晴", False, False), ("", False, False),
    ("<answer>汪晴晴</answer><think>想</think>", False, True), (GOOD.removesuffix("</answer>"), False, False),
])  # fmt: skip
def test_a_thought_is_judged_by_its_form_and_by_its_answer(answer, well_formed, correct):
    assert judge.judge(answer, GOOD) == {"well_formed": well_formed, "correct": correct}


def test_a_plain_answer_must_be_exact_but_for_the_space_around_it():
    assert judge.judge(" 是 \n", "是")["exact"] == 1
    assert judge.judge("是。", "是")["exact"] == 0


@pytest.mark.parametrize("given, wanted", [
    ("1,234", "1234"), ("$1234.00", "1234"), ("０．５", "1/2"), ("-3", "−3"), ("43.", "The answer is 43."),
    (r"so \boxed{\frac{3}{4}}", "0.75"), (r"\boxed{汪{晴}晴}", "汪{晴}晴"), ("12 apples", "12"), ("50 %", "50%"),
    (r"$3840\text{g}$", "3840 g"), ("B", "(B)"), ("(b).", "答案是 B。"), ("答案为：B", "B: $7$"), ("B：$68$", "B"),
    ("The answer is (G).", "g"), ("选C", "C"), ("ABD", "答案是 ABD。"), ("Yes", "The answer is yes."),
    ("三 七", "三七"),
])  # fmt: skip
def test_equivalent_answers_are_correct(given, wanted):
    assert judge.same_answer(given, wanted)
    assert judge.same_answer(wanted, given)


@pytest.mark.parametrize("given, wanted", [
    ("1234", "12345"), ("0.5", "1/3"), ("50%", "0.5"), ("3", "-3"), ("12 apples", "12 pears"), ("not 42", "42"),
    ("A", "B"), ("A: $7$", "B: $7$"), ("AB", "ABD"), ("A dog", "A"), ("", "B"), ("answer", "B"),
    ("三七", "37"), ("1/0", "1"), ("9" * 5000, "9"), ("选举", "举"), (r"\boxed{4", "4"), ("4 or 5", "4"),
])  # fmt: skip
def test_another_answer_is_wrong(given, wanted):
    assert not judge.same_answer(given, wanted)
    assert not judge.same_answer(wanted, given)


@settings(max_examples=200, deadline=None)
@given(st.fractions(-(10**6), 10**6, max_denominator=40))
def test_a_number_is_read_as_python_reads_it(value):
    assert judge.number(judge.normalised(str(value))) == (value, "")
    assert judge.number(f"{value.numerator:,}") == (Fraction(value.numerator), "")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_the_judge_and_every_text_is_its_own_answer(text, other):
    assert judge.same_answer(text, text)
    assert judge.same_answer(text, other) in (True, False)
    assert 0 <= judge.token_f1(text, other) == judge.token_f1(other, text) <= 1


def test_token_f1_counts_chinese_by_character_and_english_by_word():
    assert judge.token_f1("The red boat", "the boat!") == pytest.approx(2 * 2 / 5)
    assert judge.token_f1("红色的船", "红船") == pytest.approx(2 * 2 / 6)
    assert judge.token_f1("a a a", "a b") == pytest.approx(2 * 1 / 5)
    assert judge.token_f1("", "。") == 1 != judge.token_f1("", "船")
