"""Incremental detokenization: whole characters only, and no part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine.reasoning import partial_match_length


class TextStream:
    """Text of a growing answer. Text that may become a stop string is held back until it cannot.

    Args:
        tokenizer: Tokenizer of the model.
        stop: Strings that end the answer and are no part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop = stop
        self.written = ""  # text that is final
        self.stopped = False  # by a stop string
        self._decoder = DecodeStream(skip_special_tokens=False)
        self._ids = []
        self._held = ""

    def add(self, token: int) -> None:
        """Add a token. A character that is split over tokens is added with its last byte."""
        self._ids.append(token)
        if piece := self._decoder.step(self.tokenizer, token):
            self._add_text(piece)

    def end(self) -> None:
        """Release the text that was held back, and the bytes of an incomplete character as U+FFFD."""
        if not self.stopped:
            text = self.tokenizer.decode(self._ids, skip_special_tokens=False)
            self._add_text(text[len(self.written + self._held) :])
        self.written += self._held
        self._held = ""

    def _add_text(self, piece: str) -> None:
        text = self._held + piece
        if stops := [text.index(stop) for stop in self.stop if stop in text]:
            self.written += text[: min(stops)]
            self._held = ""
            self.stopped = True
            return
        released = len(text) - max((partial_match_length(text, stop) for stop in self.stop), default=0)
        self.written += text[:released]
        self._held = text[released:]
