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


class ReasoningParser:
    """Split an answer into thought and content while it is generated, without the tags and the line breaks inside them.

    An answer that does not begin with <think> is all content. Text that may turn out to be part of a tag is held back.
    """

    # state -> the tag that ends it, and the state after that tag. In "rest" no tag counts.
    _NEXT = {
        "start": (THINK, "thought"),
        "thought": (END_THINK, "between"),
        "between": (ANSWER, "answer"),
        "answer": (END_ANSWER, "rest"),
    }

    def __init__(self) -> None:
        self.thought, self.content = "", ""
        self.state = "start"
        self._held = ""

    def add(self, piece: str) -> None:
        """Read the next piece of the answer."""
        self._held += piece
        while self._advance():
            pass

    def end(self) -> None:
        """Take what was held back as text: nothing follows that could make a tag of it."""
        self._append(self._held)
        self._held = ""

    def _append(self, text: str) -> None:
        if self.state == "thought":
            self.thought = (self.thought + text).lstrip("\n")
        elif self.state == "answer" and not self.content:
            self.content = text.lstrip("\n")
        else:
            self.content += text

    def _advance(self) -> bool:
        """Read what is certain of the held text, and return whether another state began."""
        if self.state == "rest":
            self.end()
            return False
        tag, next_state = self._NEXT[self.state]
        if self.state in ("start", "between"):
            text = self._held.lstrip()
            if text.startswith(tag):
                self.state, self._held = next_state, text.removeprefix(tag)
                return True
            if tag.startswith(text):
                return False
            if self.state == "between":
                self._held = text
            self.state = "rest"
            return True
        before, closed, after = self._held.partition(tag)
        if closed:
            self._append(before.removesuffix("\n"))
            self.state, self._held = next_state, after
            return True
        split = len(before) - (partial_match_length(before, "\n" + tag) or partial_match_length(before, tag))
        self._append(before[:split])
        self._held = before[split:]
        return False


def partial_match_length(text: str, word: str) -> int:
    """Return how many of the last characters of `text` are the first ones of `word`, but never all of `word`."""
    longest = min(len(word) - 1, len(text))
    return next(length for length in range(longest, -1, -1) if text.endswith(word[:length]))
