"""A number is parsed as Python parses it; what answers may be written like is in answers_table.jsonl."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from engine.score.answer_matching import normalize_answer
from engine.score.quantities import parse_quantity


@given(st.fractions(-(10**6), 10**6, max_denominator=40))
def test_parse_quantity_agrees_with_python(value):
    assert parse_quantity(normalize_answer(str(value))) == (value, "")
    assert parse_quantity(f"{value.numerator:,}") == (Fraction(value.numerator), "")


def test_parse_quantity_refuses_thousands_of_digits_and_zero_denominators():
    for text in ("9" * 5000, "1/0", "1 1/0", "0^-1"):
        assert parse_quantity(text) is None
