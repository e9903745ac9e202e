"""Reading JSONL as it comes: plain or gzip, BOM, CRLF, blank lines, no last newline, lines of any length."""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from engine.console import printable, warn
from engine.corpus.file_types import BOM, GZIP, HEADER_BYTES, describe_file
from engine.reasoning import TAGS
from engine.schemas import JSON_DECODER, WITHHELD, ZERO_KEYS, BadRow, DroppedRow, EmptyRow, schemas_of

READ_BLOCK_BYTES = 4 << 20  # read at a time; a tokenizing process gets one block
Readable = BinaryIO | gzip.GzipFile

# ------------------------------------------------------------------------------------------------------ files


def source_files(data_path: Sequence[str | Path]) -> list[Path]:
    """Return the JSONL files a user named.

    Raises:
        ValueError: One of them is missing, or is something else.
    """
    paths = [Path(path) for path in data_path]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        if (path / "meta.json").is_file():
            raise ValueError(f"{path}: a token cache, which a training stage reads alone, with no other --data_path")
        if path.is_dir():
            raise ValueError(f"{path}: a folder, but neither a JSONL file nor a token cache (no meta.json in it)")
        if not path.is_file():
            raise ValueError(
                f"{path}: a pipe or a device, but rows are read more than once: write them to a file first"
            )
        with open(path, "rb") as raw:
            _unpack(raw, path)
    return paths


def read_blocks(path: Path, advance: Callable[[int], object] = lambda count: None) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) of a JSONL file, plain or gzip, some READ_BLOCK_BYTES at a time.

    `advance` is called with the bytes of the file (packed, if it is) that were read since the last call.
    """
    with open(path, "rb") as raw:
        stream = _unpack(raw, path)
        position = 0
        for number, block in join_lines(partial(_read, stream, path)):
            advance(raw.tell() - position)
            position = raw.tell()
            yield number, block


def join_lines(read: Callable[[int], bytes], separator: bytes = b"\n") -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) of what `read`, called with a number of bytes, returns."""
    number = 1
    rest: list[bytes] = []  # of a line that continues in the next block
    while chunk := read(READ_BLOCK_BYTES):
        end = chunk.rfind(separator) + 1
        if end:
            block = b"".join([*rest, chunk[:end]])
            yield number, block
            number += block.count(b"\n")
            rest = []
        rest.append(chunk[end:])
    if last := b"".join(rest):
        yield number, last


def _unpack(raw: BinaryIO, path: Path, *, is_one_row: bool = False) -> Readable:
    """Open a file's lines, whatever its name says; ValueError names by its first bytes what is no JSONL."""
    head = raw.read(HEADER_BYTES)
    raw.seek(0)
    stream: Readable = raw
    if is_packed := head.startswith(GZIP):
        stream = gzip.GzipFile(fileobj=raw)
        head = _read(stream, path, HEADER_BYTES)
        stream.seek(0)
    if file_type := describe_file(path, head, is_packed=is_packed, is_one_row=is_one_row):
        raise ValueError(f"{path}: {file_type}")
    return stream


def _read(stream: Readable, path: Path, size: int) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # a download that broke off
        raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from None


# ------------------------------------------------------------------------------------------------------ lines


def split_lines(first: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of a block's lines but blank ones. Joined Windows files have a BOM inside."""
    for number, line in enumerate(block.split(b"\n"), first):
        line = line.strip()
        while line.startswith(BOM):
            line = line.removeprefix(BOM).strip()
        if line:
            yield number, line


def read_lines(path: Path, advance: Callable[[int], object] = lambda count: None) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of a file's lines but blank ones; `advance` as in `read_blocks`."""
    for first, block in read_blocks(path, advance):
        yield from split_lines(first, block)


def parse_line(line: bytes) -> dict:
    """Return a JSONL line as a dict.

    Raises:
        BadRow: It is no JSON object in UTF-8.
    """
    try:
        row = JSON_DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRow("not JSON (nested too deeply)") from None
    except ValueError as error:  # no JSON, or a number of more than 4,300 digits
        raise BadRow(f"not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected an object, found {type(row).__name__}")
    return row


ZERO_FIELD_RE = re.compile(rb'"(' + "|".join(ZERO_KEYS).encode() + rb')"\s*:\s*([^\s,}\]]+)')
ZERO_FIELD_VALUES = {b"0", b"0.0", b'"0"', b"1", b"1.0", b'"1"', b"true", b"false", b"null", b"NaN"}


def find_zero_fields(path: Path) -> frozenset[str]:
    """Return the fields of ZERO_KEYS that hold nothing but 0 and 1 in a file, in its rows and turns alike."""
    return zero_fields_of(read_blocks(path))


def zero_fields_of(blocks: Iterable[tuple[int, bytes]]) -> frozenset[str]:
    """Return the same of the lines of a file, as `read_blocks` yields them."""
    present, other = set(), set()
    for _, block in blocks:
        if any(name.encode() in block for name in ZERO_KEYS):
            for name, value in ZERO_FIELD_RE.findall(block):
                present.add(name.decode())
                if value not in ZERO_FIELD_VALUES:
                    other.add(name.decode())
    return frozenset(present - other)


def parse_row(line: bytes, zero_fields: frozenset[str]) -> dict:
    """Return a JSONL line as a dict, in which a 0 of a chat's `zero_fields` is false, and a 1 true.

    Raises:
        BadRow: As in `parse_line`.
    """
    return zeros_as_false(parse_line(line), zero_fields)


def zeros_as_false(row: dict, zero_fields: frozenset[str]) -> dict:
    """Return a row in which a 0 of a chat's `zero_fields` is false, and a 1 true."""
    return _replace_zeros(row, zero_fields) if zero_fields and schemas_of(row) else row


def _replace_zeros(fields: dict, names: frozenset[str]) -> dict:
    result = {}
    for name, value in fields.items():
        if name in names and value in (0, 1, "0", "1"):
            value = value in (1, "1")
        elif isinstance(value, list):
            value = [_replace_zeros(turn, names) if isinstance(turn, dict) else turn for turn in value]
        result[name] = value
    return result


# ------------------------------------------------------------------------------------------- counts and reports


@dataclass
class RowCounts:
    """Counts of the rows of a file, or of a part of it: whatever is left out is counted and named."""

    rows: int = 0
    bad: int = 0
    empty: int = 0  # without words; nothing is wrong with them
    dropped: int = 0  # chats of which nothing is left to learn
    examples: list[str] = field(default_factory=list)  # the first five bad ones, "line: reason"
    notes: dict[str, list[int]] = field(default_factory=dict)  # note of dataset.py -> [rows, line of the first]

    def read(
        self,
        number: int,
        line: bytes,
        read: Callable[[dict, set[str]], Any],
        zero_fields: frozenset[str] = frozenset(),
    ) -> Any:
        """Count a line, and return what `read` makes of it, or None where it is left out.

        Args:
            number: Number of the line in its file.
            line: Its content.
            read: (row, notes) -> content; raises BadRow.
            zero_fields: Of the file, as `find_zero_fields` returns them.
        """
        with suppress(BadRow):
            return self.count(number, lambda notes: read(parse_row(line, zero_fields), notes))
        return None

    def count(self, number: int, read: Callable[[set[str]], Any]) -> Any:
        """Count a row, and return what `read` makes of it.

        Args:
            number: Number of the row in its file.
            read: Adds to a set of notes, and returns the content of the row.
        Raises:
            BadRow: As `read` does: the row is left out.
        """
        self.rows += 1
        notes: set[str] = set()
        try:
            content = read(notes)
        except EmptyRow:
            self.empty += 1
            raise
        except DroppedRow:
            self.dropped += 1
            self._note(number, {note for note in notes if note.startswith(WITHHELD)})
            raise
        except BadRow as error:
            self.bad += 1
            self.examples = [*self.examples, f"{number}: {error}"][:5]
            raise
        self._note(number, notes)
        return content

    def _note(self, number: int, notes: set[str]) -> None:
        for note in notes:
            self.notes.setdefault(note, [0, number])[0] += 1

    def add(self, later: "RowCounts") -> None:
        """Add the counts of a later part of the file."""
        self.rows += later.rows
        self.bad += later.bad
        self.empty += later.empty
        self.dropped += later.dropped
        self.examples = [*self.examples, *later.examples][:5]
        for note, (rows, first) in later.notes.items():
            self.notes.setdefault(note, [0, first])[0] += rows

    def notes_of(self, topic: str) -> dict[str, int]:
        """Return {name: rows} of the notes "topic name"."""
        prefix = f"{topic} "
        return {note.removeprefix(prefix): rows for note, (rows, _) in self.notes.items() if note.startswith(prefix)}


@dataclass
class RowReport:
    """The counts of every file, and the messages about them: at the first start, and whenever their cache is opened."""

    strict: bool
    files: dict[str, RowCounts]  # an entry for every file: one without a line is refused, too
    allow_dropped: bool = True

    def check_strict(self) -> None:
        """Raise ValueError for the first bad row, or field that is not used, under --strict_data."""
        if not self.strict:
            return
        for path, counts in self.files.items():
            notes = sorted((first, note) for note, (_, first) in counts.notes.items())
            unused = [f"{first}: {note} is not used" for first, note in notes if note.startswith("field ")]
            withheld = [f"{first}: {_withheld(note)}" for first, note in notes if note.startswith(WITHHELD)]
            problems = [*counts.examples, *withheld, *unused]
            if problems:
                raise ValueError(f"{printable(f'{path}:{problems[0]}')} (--strict_data stops at the first bad row)")

    def check_bad_rows(self, valid: str) -> None:
        """Raise ValueError for a file of which most rows, or more than 1 % and more than 10, are bad, or none is good.

        `valid` is a line that would be good.
        """
        for path, counts in self.files.items():
            name = printable(path)
            rows, bad = counts.rows, counts.bad
            examples = "\n  ".join([*_examples(path, counts), f"a valid line: {valid}"])
            if bad > 0.5 * rows or (bad > 10 and bad > 0.01 * rows):
                if rows == 1:
                    with open(path, "rb") as raw:
                        _unpack(raw, Path(path), is_one_row=True)
                share = "more than 1 %" if bad < rows else "so there is no usable row in it"
                problem = f"{bad} of {rows} rows are bad, {share}: is this the right file and schema?"
                raise ValueError(f"{name}: {problem}\n  {examples}")
            dropped = counts.empty + counts.dropped
            if bad + dropped == rows:
                raise ValueError(f"{name}: no usable row in it: {_dropped(counts)}\n  {examples}")
            if dropped > 0.5 * rows and not self.allow_dropped:
                problem = f"{dropped} of {rows} rows would be left out: {_dropped(counts)}"
                reasons = "".join(f"\n  {message}" for message in _withheld_messages(counts))
                raise ValueError(f"{name}: {problem}; --allow_dropped trains on the others{reasons}")

    def warn_skipped(self) -> None:
        """Warn of what was left out, and of what was read otherwise than it may be meant."""
        for path, counts in self.files.items():
            for message in _warnings(path, counts):
                warn(f"{printable(path)}: {message}")


def _examples(path: str, counts: RowCounts) -> list[str]:
    return [printable(f"{path}:{example}") for example in counts.examples]


def _dropped(counts: RowCounts) -> str:
    parts = {"have no words": counts.empty, "hold no answer that is to be learned": counts.dropped}
    return ", ".join(f"{rows} {reason}" for reason, rows in parts.items() if rows)


def _withheld(note: str) -> str:
    topic, _, name = note.partition(" ")
    if topic == "bad_answer":
        return f"field {name} calls an answer bad, so it is not learned"
    return "a turn has no words, so its question and answer are left out"


def _withheld_messages(counts: RowCounts) -> list[str]:
    notes = [(note, rows, first) for note, (rows, first) in counts.notes.items() if note.startswith(WITHHELD)]
    return [f"{rows} rows, the first in line {first}: {_withheld(note)}" for note, rows, first in notes]


def _warnings(path: str, counts: RowCounts) -> Iterator[str]:
    if counts.bad:
        examples = "\n  ".join(_examples(path, counts))
        yield f"skipped {counts.bad} bad rows of {counts.rows}, the first:\n  {examples}"
    yield from _withheld_messages(counts)
    if counts.empty or counts.dropped:
        yield f"left out {counts.empty + counts.dropped} rows of {counts.rows}: {_dropped(counts)}"
    for field_name, rows in counts.notes_of("number").items():
        what = "holds a number or several values, or other words, which do not say that an answer is bad: learned"
        yield f"field {printable(field_name)} of {rows} rows {what}"
    for field_name, rows in counts.notes_of("field").items():
        yield f"field {printable(field_name)} of {rows} rows is not used"
    if broken := counts.notes_of("tags").get("broken"):
        yield f"{broken} rows hold some of {' '.join(TAGS)}, but not all of them in this order"
    if tokens := counts.notes_of("special_token"):
        rows_of = ", ".join(f"{printable(token)} in {rows} rows" for token, rows in tokens.items())
        remedy = "take them out of the file"
        if counts.notes_of("schema").keys() == {"text"}:
            remedy += ", or give pretrain.py --split_on_special_tokens if <s> and </s> separate documents"
        yield f"special tokens in the texts are trained on as ordinary characters: {rows_of}; {remedy}"
