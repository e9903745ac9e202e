"""Every rule does what its line in the table says, leaves the rest alone, and a clean row stays as it is."""

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus import rules
from engine.corpus.rules import RULES, clean

DEFAULT = {rule.name for rule in RULES if rule.on}
EVERY = {rule.name for rule in RULES}
APPLIED = [rule for rule in RULES if rule.apply]


def chat(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# ------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("rule", APPLIED, ids=lambda rule: rule.name)
def test_example_of_a_rule_is_what_it_does_and_no_other_rule_is_needed(rule):
    before, after = rule.example
    cleaned = clean(before, {rule.name})
    assert cleaned.content == after and cleaned.dropped_by == ("" if after else rule.name)
    assert clean(before, EVERY - {rule.name}).dropped_by != rule.name
    if after:
        assert list(cleaned.edits) == [rule.name]


def test_rules_have_names_that_are_flags_and_one_line_reasons():
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"[a-z_]+", rule.name) and len(rule.help) <= 120 and "\n" not in rule.help


def test_unknown_rule_and_missing_package_are_named_before_reading(monkeypatch):
    with pytest.raises(ValueError, match="no rule sparkle; there are broken_row, "):
        rules.check_rules({"nfc", "sparkle"})
    monkeypatch.setitem(sys.modules, "ftfy", None)
    rules.edits.load_ftfy.cache_clear()
    with pytest.raises(ValueError, match="mojibake needs ftfy: pip install ftfy, or type --no-mojibake"):
        rules.check_rules(DEFAULT)
    rules.check_rules(DEFAULT - {"mojibake"})


PIECES = (
    "春眠不觉晓，处处闻啼鸟。 cafÃ© e\u0301 \u200b \u200d 👩\u200d👩\u200d👧 \ufeff \x08ar ``` sk- "
    "sk-a1b2c3d4e5f6g7h8i9j0 11010519491231002X 1234 - ann@example.org 锛岀殑 € \ufffd "
    "<think> </think> <answer> </answer>"
).split(" ")
PIECES += ["\r\n", "\r", "\n", "\n\n", "\t", " ", "```\n", "~~~\n", "    x = 1\n", "As an AI", "a" * 80]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40)
WORDS = TEXTS.filter(str.strip)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    WORDS | st.lists(WORDS, min_size=2, max_size=5).map(lambda texts: chat(*texts)), st.sampled_from([DEFAULT, EVERY])
)
def test_a_clean_row_stays_as_it_is(content, on):
    cleaned = clean(content, on)
    if cleaned.content is not None:
        assert clean(cleaned.content, on) == (cleaned.content, "", {})


# -------------------------------------------------------------------------------------------------- conversations


def test_last_question_goes_and_a_lone_one_takes_its_row():
    tool = [*chat("Time?", "Let me see."), {"role": "tool", "content": "noon"}]
    assert clean(tool, DEFAULT).content == tool[:2]
    assert clean(chat("Time?"), DEFAULT) == (None, "last_question", {})
    read_only = [{"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon", "train": False}]
    assert clean([*read_only, *chat("And now?")], DEFAULT).dropped_by == "last_question"


def test_a_turn_that_loses_its_words_takes_its_pair():
    content = chat("Hi", "<think>\u200b</think><answer>\u200b</answer>", "Time?", "No\u200bon")
    cleaned = clean(content, DEFAULT)
    assert cleaned.content == chat("Time?", "Noon") and list(cleaned.edits) == ["invisible"]
    assert clean(content[:2], DEFAULT).dropped_by == "invisible"
    assert content[3]["content"] == "No\u200bon"  # the caller's row is as it was


def test_examples_for_the_report_show_no_secret_on_either_side():
    key = "sk-proj-a1B2c3D4e5F6g7H8i9J0"
    cleaned = clean(f"e\u0301 {key} \u200b" + "word " * 100 + "11010519491231002X", DEFAULT)
    assert list(cleaned.edits) == ["nfc", "invisible", "api_keys", "id_numbers"]
    assert cleaned.edits["api_keys"][0].startswith("é sk-… ") and "[API_KEY]" in cleaned.edits["api_keys"][1]
    split = clean(f"Take {key[:14]}\u200b{key[14:]} now", DEFAULT)
    shown = str([cleaned.edits, split.edits])
    assert key[:14] not in shown and "1949" not in shown and "\\u200b" in cleaned.edits["invisible"][0]
    assert max(map(len, cleaned.edits["nfc"])) == 200
