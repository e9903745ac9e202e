"""An answer that grows -> its thought and what stands behind it, and back to the words the model was trained on."""

TAGS = THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"


class ReasoningParser:
    """Cuts <think>...</think><answer>...</answer> while it comes, without the tags and the line breaks inside them.

    An answer that begins otherwise is content from its first character on. What may be part of a tag is held back.
    """

    def __init__(self) -> None:
        self.thought, self.content = "", ""
        self._held, self._part = "", "start"  # then "thought", "between", "answer", and "rest" where no tag counts

    def add(self, piece: str) -> None:
        self._held += piece
        while self._go_on():
            pass

    def end(self) -> None:
        """Nothing follows: what was held back is no tag."""
        self._put(self._held)
        self._held = ""

    def _put(self, text: str) -> None:
        if self._part == "thought":
            self.thought = (self.thought + text).lstrip("\n")
        elif self._part == "answer" and not self.content:
            self.content = text.lstrip("\n")
        else:
            self.content += text

    def _go_on(self) -> bool:
        """Take what is sure; whether the next part has begun."""
        if self._part in ("start", "between"):
            opening = THINK if self._part == "start" else ANSWER
            words = self._held.lstrip()
            if words.startswith(opening):
                self._part, self._held = "thought" if opening == THINK else "answer", words[len(opening) :]
                return True
            if opening.startswith(words):
                return False
            if self._part == "between":
                self._held = words
            self._part = "rest"
            return True
        if self._part == "rest":
            self._put(self._held)
            self._held = ""
            return False
        closing = END_THINK if self._part == "thought" else END_ANSWER
        before, closed, after = self._held.partition(closing)
        if closed:
            self._put(before.removesuffix("\n"))
            self._part, self._held = "between" if closing == END_THINK else "rest", after
            return True
        held = beginning(before, "\n" + closing) or beginning(before, closing)
        self._put(before[: len(before) - held])
        self._held = before[len(before) - held :]
        return False


def format_reasoning(thought: str, content: str) -> str:
    """What the model said when `Thoughts` made these two of it."""
    return f"{THINK}\n{thought}\n{END_THINK}\n{ANSWER}\n{content}\n{END_ANSWER}"


def beginning(text: str, word: str) -> int:
    """How many of the last characters of `text` could be the first ones of `word`."""
    return next(size for size in range(min(len(word) - 1, len(text)), -1, -1) if text.endswith(word[:size]))
