"""Incremental detokenization: whole characters only, and no part of a stop string."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine.reasoning import partial_match_length


def all_content(text: str, is_whole: bool) -> tuple[str, str]:
    """Split a text that has no thought."""
    return "", text


class TextStream:
    """Text of a growing answer. Content that may become a stop string is held back until it cannot.

    Args:
        tokenizer: Tokenizer of the model.
        stop: Strings that end the content and are no part of it; in a thought they are words like others.
        split: Splits a text, whole or not, into thought and content, which only grow (reasoning.stream_reasoning).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        split: Callable[[str, bool], tuple[str, str]] = all_content,
    ):
        self.tokenizer = tokenizer
        self.stop = stop
        self.split = split
        self.parts = ("", "")  # thought and content that are final; replaced as a pair, for other threads read it
        self.stopped = False  # by a stop string
        self._decoder = DecodeStream(skip_special_tokens=False)
        self._ids = []
        self._text = ""

    @property
    def written(self) -> str:
        """Return the content that is final."""
        return self.parts[1]

    def add(self, token: int) -> None:
        """Add a token. A character that is split over tokens is added with its last byte."""
        self._ids.append(token)
        if piece := self._decoder.step(self.tokenizer, token):
            self._text += piece
            self._update(is_whole=False)

    def end(self) -> None:
        """Release the text that was held back, and the bytes of an incomplete character as U+FFFD."""
        if not self.stopped:
            self._text = self.tokenizer.decode(self._ids, skip_special_tokens=False)
            self._update(is_whole=True)

    def _update(self, is_whole: bool) -> None:
        """Cut the content at the stop string that begins first, whatever tokens it came in."""
        thought, content = self.split(self._text, is_whole)
        starts = [content.index(stop) for stop in self.stop if stop in content]
        end = len(content)
        if not is_whole:
            end -= max((partial_match_length(content, stop) for stop in self.stop), default=0)
        self.stopped = min(starts, default=end + 1) <= end
        self.parts = thought, content[: min([end, *starts])]
