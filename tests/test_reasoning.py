"""The form of an answer that reasons: joined, split when it is whole, and split while it grows."""

import pytest

from engine.reasoning import final_answer, format_reasoning, split_reasoning, stream_reasoning, tag_form

WHOLE = "<think>\n一加一，\n要进位吗？\n</think>\n<answer>\n2\n</answer>"


@pytest.mark.parametrize(
    "text, thought, content",
    [
        (WHOLE, "一加一，\n要进位吗？", "2"),
        ("你好<think>", "", "你好<think>"),
        ("<think>没完", "没完", ""),
        ("\n<think>a</think>b", "a", "b"),
        ("<think>a\n\nb</thin</think> <answer>1\n2</answer>.", "a\n\nb</thin", "1\n2."),
        ("<thinking>", "", "<thinking>"),
        ("<answer>1</answer>", "", "<answer>1</answer>"),
        ("", "", ""),
        ("<think>a</think>\n<ans", "a", "\n<ans"),
        ("<", "", "<"),
    ],
)
def test_growing_answer_is_split_and_its_parts_only_grow(text, thought, content):
    seen = ("", "")
    for end in range(len(text) + 1):
        parts = stream_reasoning(text[:end], is_whole=False)
        assert parts[0].startswith(seen[0]) and parts[1].startswith(seen[1])
        seen = parts
    assert stream_reasoning(text, is_whole=True) == (thought, content)
    assert thought.startswith(seen[0]) and content.startswith(seen[1])


def test_what_is_joined_is_split_again():
    assert format_reasoning("一加一，\n要进位吗？", "2") == WHOLE
    assert split_reasoning(WHOLE)[0] == "\n一加一，\n要进位吗？\n" and final_answer(WHOLE) == "\n2\n"


@pytest.mark.parametrize(
    "text, form",
    [
        (WHOLE, "whole"),
        (WHOLE.replace("一加一", "<answer>二</answer>"), "whole"),
        ("2", "none"),
        (WHOLE.removeprefix("<think>"), "broken"),
        (WHOLE.removesuffix("</answer>"), "broken"),
        ("<answer>2</answer>", "broken"),
    ],
)
def test_tags_are_whole_broken_or_none(text, form):
    assert tag_form(text) == form
