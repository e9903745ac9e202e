"""Rows of JSON that is no JSONL: an array, indented objects, an object that holds a list, a table by columns.

A file is parsed as it is read: memory does not grow with it. A row has at most MAX_VALUE_CHARS.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from engine.corpus.file_types import WRAPPED
from engine.schemas import JSON_DECODER, SCHEMAS

READ_CHARS = 1 << 20
MAX_VALUE_CHARS = 64 << 20  # of one row, and of an object that holds the columns of a table
LONGEST_WORD = 16  # characters: an error that close to the end of what was read may be the end's, as in -Infin
SPACE_RE = re.compile(r"[\s\ufeff]*")


def read_values(stream: TextIO, name: str) -> Iterator[Any]:
    """Yield the rows that a file holds, in order; those that are no objects, too.

    Args:
        stream: The file.
        name: What the error message calls it.
    Raises:
        ValueError: It is no JSON, or breaks off; names the line.
    """
    reader = _Reader(stream, name)
    while first := reader.peek():
        if first == "[":
            yield from reader.elements()
        elif reader.is_wrapped():
            yield from reader.lists()
        else:
            yield from rows_of(reader.value())
        if reader.peek() == ",":
            reader.take(",")


def rows_of(value: Any) -> list:
    """Return the rows that an object holds: of its lists, of its objects, or of its columns; else itself."""
    if not isinstance(value, dict) or isinstance(value.get("text"), str):
        return [value]
    columns, data = value.get("columns"), value.get("data")  # as pandas splits a table
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(cells, list) for cells in data):
        return [dict(zip(columns, cells, strict=False)) for cells in data]
    parts = list(value.values())
    if parts and all(isinstance(part, dict) for part in parts):
        if "0" not in parts[0]:
            return parts  # by name
        parts = [list(part.values()) for part in parts]
    if all(map(_is_column, parts)) and len({len(part) for part in parts}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*parts, strict=True)]
    if not value.keys() & SCHEMAS.keys():
        lists = (part for part in parts if isinstance(part, list) and part and isinstance(part[0], dict))
        return list(chain.from_iterable(lists)) or [value]
    return [value]


def _is_column(part: Any) -> bool:
    return isinstance(part, list) and not any(isinstance(cell, dict) for cell in part)


class _Reader:
    """The text of a file as far as it was read, and the position in it."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name = stream, name
        self._text, self._at = "", 0
        self._line = 1  # of the beginning of _text

    def _read_more(self) -> bool:
        """Forget what is behind the position, and read as much as is kept: a long row is parsed a few times at most."""
        self._line += self._text.count("\n", 0, self._at)
        text = self._text[self._at :]
        more = self._stream.read(max(READ_CHARS, len(text)))
        self._text, self._at = text + more, 0
        return bool(more)

    def _error(self, problem: str, position: int) -> ValueError:
        line = self._line + self._text.count("\n", 0, position)
        if position >= len(self._text):
            problem = "it breaks off; fetch or write it again"
        return ValueError(f"{self._name}:{line}: broken JSON: {problem}")

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            match = SPACE_RE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Pass a character that has to come here; ValueError where another comes."""
        if self.peek() != character:
            raise self._error(f"{character!r} is missing before {self._text[self._at :][:20]!r}", self._at)
        self._at += 1

    def value(self) -> Any:
        """Return the next value; ValueError where it is broken."""
        self.peek()
        while True:
            try:
                value, end = JSON_DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                problem, position = error.msg, error.pos
                is_cut = problem.startswith("Unterminated") or position > len(self._text) - LONGEST_WORD
            except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits; nested too deeply
                raise self._error(str(error), self._at) from None
            else:
                is_whole = isinstance(value, (dict, list, str)) or end < len(self._text)
                if is_whole or not self._read_more():
                    self._at = end if is_whole else len(self._text)
                    return value
                continue
            if is_cut and len(self._text) - self._at > MAX_VALUE_CHARS:
                limit = f"a value of more than {MAX_VALUE_CHARS:,} characters, or a quote that is not closed"
                raise self._error(f"{limit}; write the rows as JSONL", self._at)
            if not is_cut or not self._read_more():
                raise self._error(problem, len(self._text) if is_cut else position)

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def is_wrapped(self) -> bool:
        """Return whether an object comes that holds rows in a list."""
        match = WRAPPED.match(self._text[self._at :][:READ_CHARS].encode("utf-8", "replace"))
        return match is not None and match[1].decode() not in SCHEMAS

    def lists(self) -> Iterator[Any]:
        """Yield the rows of each list of an object."""
        self.take("{")
        while self.peek() != "}":
            self.value()
            self.take(":")
            if self.peek() == "[":
                yield from (value for value in self.elements() if isinstance(value, dict))
            else:
                self.value()
            if self.peek() != "}":
                self.take(",")
        self.take("}")
