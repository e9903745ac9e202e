"""Tokens of an answer -> its text, piece by piece: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine.reasoning import partial_match_length


class TextStream:
    """The text of an answer that grows. What may turn out to be part of a stop string is held back until it is not."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.written = ""  # what may be shown
        self.stopped = False  # by a stop string, which is left out
        self._decoder, self._ids, self._decoded, self._held = DecodeStream(skip_special_tokens=False), [], 0, ""

    def add(self, token: int) -> None:
        """A character that is spread over tokens comes when its last byte is there."""
        self._ids.append(token)
        if piece := self._decoder.step(self.tokenizer, token):
            self._take(piece)

    def end(self) -> None:
        """No token follows: show what was held back, and what is there of a character that was cut."""
        if not self.stopped:
            self._take(self.tokenizer.decode(self._ids, skip_special_tokens=False)[self._decoded :])
        self.written += self._held
        self._held = ""

    def _take(self, piece: str) -> None:
        self._decoded += len(piece)
        text = self._held + piece
        if found := [at for at in map(text.find, self.stop) if at >= 0]:
            self.written, self._held, self.stopped = self.written + text[: min(found)], "", True
            return
        held = max((partial_match_length(text, word) for word in self.stop), default=0)
        self.written, self._held = self.written + text[: len(text) - held], text[len(text) - held :]
