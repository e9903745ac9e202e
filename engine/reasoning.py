"""The form of an answer that reasons: <think>thought</think><answer>content</answer>, joined, split and streamed."""

import re

TAGS = THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
TAG_RE = re.compile(f"({'|'.join(TAGS)})")
_NO_TAG = f"(?:(?!{'|'.join(TAGS)}).)*"
WELL_FORMED = re.compile(rf"\s*{THINK}{_NO_TAG}{END_THINK}\s*{ANSWER}{_NO_TAG}{END_ANSWER}\s*", re.DOTALL)


def format_reasoning(thought: str, content: str) -> str:
    """Join a thought and the content that follows it, as the model is trained to write them."""
    return f"{THINK}\n{thought}\n{END_THINK}\n{ANSWER}\n{content}\n{END_ANSWER}"


def split_reasoning(text: str) -> tuple[str, str]:
    """Split a whole answer into (thought, text after it).

    A thought may quote tags, so it ends at the last </think>; without one, an opened thought reaches to the end.
    """
    before, closed, after = text.rpartition(END_THINK)
    if not closed and THINK in text:
        before, after = text, ""
    return before.partition(THINK)[2] or before, after


def final_answer(text: str) -> str:
    """Return what is inside <answer> after the thought, or without these tags all that follows the thought."""
    after = split_reasoning(text)[1]
    match = re.search(f"{ANSWER}(.*?){END_ANSWER}", after, re.DOTALL)
    return match[1] if match else after


def tag_form(text: str) -> str:
    """Return "whole" where the tags are in order, "broken" where some are missing, "none" without tags.

    A thought may quote tags.
    """
    tags = tuple(TAG_RE.findall(text))
    if not tags:
        return "none"
    is_whole = tags[0] == THINK and END_THINK in tags and tags[-2:] == (ANSWER, END_ANSWER)
    return "whole" if is_whole else "broken"


def stream_reasoning(text: str, is_whole: bool) -> tuple[str, str]:
    """Split an answer, while it grows, into thought and content without the tags and the line breaks inside them.

    An answer that does not begin with <think> is all content. Until the answer is whole, text that may turn out to be
    part of a tag is held back, so that both parts only grow.
    """
    start = text.lstrip()
    if not start.startswith(THINK):
        return "", "" if THINK.startswith(start) and not is_whole else text
    thought, after = _split_at_tag(start.removeprefix(THINK), END_THINK, is_whole)
    answer = after.lstrip()
    if ANSWER.startswith(answer) and answer != ANSWER:
        return thought, after if is_whole else ""
    if not answer.startswith(ANSWER):
        return thought, answer
    content, rest = _split_at_tag(answer.removeprefix(ANSWER), END_ANSWER, is_whole)
    return thought, content + rest


def _split_at_tag(text: str, tag: str, is_whole: bool) -> tuple[str, str]:
    """Return the text before a tag, without the line breaks around it, and the text after the tag."""
    before, closed, after = text.partition(tag)
    if closed:
        before = before.removesuffix("\n")
    elif not is_whole:
        held = partial_match_length(before, "\n" + tag) or partial_match_length(before, tag)
        before = before[: len(before) - held]
    return before.lstrip("\n"), after


def partial_match_length(text: str, word: str) -> int:
    """Return how many of the last characters of `text` are the first ones of `word`, but never all of `word`."""
    longest = min(len(word) - 1, len(text))
    return next(length for length in range(longest, -1, -1) if text.endswith(word[:length]))
