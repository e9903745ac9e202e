"""Lines of most documents of a source: found on a sample of it, then removed from every document."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import chain

MAX_DOCUMENTS = 1000  # of a source, that are looked at: those with the smallest hashes, in any order of reading
MIN_DOCUMENTS = 10  # in fewer nothing is called boilerplate
MIN_LINE_BYTES = 12  # four Chinese characters


def hash_text(text: str) -> int:
    """Return 64 bits of a text, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class LineSample:
    """The lines of at most 1,000 documents of a source; the same ones whatever the order or the number of processes."""

    def __init__(self) -> None:
        self.lines_of: dict[int, frozenset[int]] = {}

    def add(self, text: str) -> None:
        """Look at one document."""
        self.lines_of[hash_text(text)] = frozenset(map(hash_text, filter(None, map(_words, text.split("\n")))))
        if len(self.lines_of) >= 2 * MAX_DOCUMENTS:
            self._shrink()

    def merge(self, other: "LineSample") -> None:
        """Take what another sample of the same source has seen."""
        self.lines_of |= other.lines_of
        self._shrink()

    def boilerplate(self) -> frozenset[int]:
        """Return the hashes of the lines of more than half of the documents."""
        self._shrink()
        counts = Counter(chain.from_iterable(self.lines_of.values()))
        if len(self.lines_of) < MIN_DOCUMENTS:
            return frozenset()
        return frozenset(line for line, count in counts.items() if 2 * count > len(self.lines_of))

    def _shrink(self) -> None:
        self.lines_of = {key: self.lines_of[key] for key in sorted(self.lines_of)[:MAX_DOCUMENTS]}


def remover(boilerplate: Collection[int]) -> Callable[[str], str]:
    """Return an edit that removes these lines from a text."""

    def kept_lines(text: str) -> Iterator[str]:
        for line in text.split("\n"):
            words = _words(line)
            if not words or hash_text(words) not in boilerplate:
                yield line

    return lambda text: "\n".join(kept_lines(text)) if boilerplate else text


def _words(line: str) -> str:
    """Return what is compared of a line; "" for one too short, and for a heading or a table's row, which repeat."""
    words = line.strip()
    is_compared = len(words.encode("utf-8", "surrogatepass")) >= MIN_LINE_BYTES and not words.startswith(("#", "|"))
    return words if is_compared and any(map(str.isalpha, words)) else ""
