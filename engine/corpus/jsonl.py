"""Reading JSONL as it comes: plain or gzip, BOM, CRLF, blank lines, no last newline, lines of any length."""

import gzip
import json
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from engine.console import printable, warn
from engine.corpus.file_types import GZIP, HEADER_BYTES, detect_file_type
from engine.reasoning import TAGS
from engine.schemas import BadRow, EmptyRow

BLOCK = 4 << 20  # bytes read at a time; a tokenising process gets one block
Readable = BinaryIO | gzip.GzipFile
BOM = b"\xef\xbb\xbf"


def blocks(path: Path, advance: Callable[[int], object] = lambda count: None) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) of a JSONL file, by gzip or plain, about BLOCK bytes at a time.

    `advance` is called with the bytes of the file (packed, if it is) that were read since the last call.
    """
    with open(path, "rb") as raw:
        stream = _unpacked(raw, path)
        number, seen, held = 1, 0, []
        while chunk := _read(stream, BLOCK, path):
            advance(raw.tell() - seen)
            seen = raw.tell()
            end = chunk.rfind(b"\n") + 1
            if end == 0:  # a line longer than a block
                held.append(chunk)
                continue
            block = b"".join([*held, chunk[:end]])
            held = [chunk[end:]]
            yield number, block
            number += block.count(b"\n")
        if last := b"".join(held):
            yield number, last


def _unpacked(raw: BinaryIO, path: Path) -> Readable:
    """The lines of a file whatever its name says; ValueError names what is no JSONL by its first bytes."""
    head = raw.read(HEADER_BYTES)
    raw.seek(0)
    stream: Readable = raw
    if head.startswith(GZIP):
        stream = gzip.GzipFile(fileobj=raw)
        head = _read(stream, HEADER_BYTES, path)
        stream.seek(0)
    if found := detect_file_type(head):
        what, command = found
        names = {"path": shlex.quote(str(path)), "name": repr(str(path)), "out": path.name.split(".")[0]}
        raise ValueError(f"{path}: {what}, not JSONL. {command.format(**names)}")
    return stream


def _read(stream: Readable, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # a download that broke off
        raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from None


def lines(first: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """The (number, content) of a block's lines; blank ones are no rows. Joined Windows files have a BOM inside."""
    for number, line in enumerate(block.split(b"\n"), first):
        line = line.strip()
        while line.startswith(BOM):
            line = line.removeprefix(BOM).strip()
        if line:
            yield number, line


def parse_line(line: bytes) -> dict:
    """One JSONL line as a dict, or BadRow."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRow("not JSON (nested too deeply)") from None
    except ValueError as error:  # no JSON, or a number of more than 4,300 digits
        raise BadRow(f"not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected an object, found {type(row).__name__}")
    return row


def source_files(data_path: Sequence[str | Path]) -> list[Path]:
    """The JSONL files a user named, or an error that says which is not there or is something else."""
    paths = [Path(path) for path in data_path]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        if (path / "meta.json").is_file():
            raise ValueError(
                f"{path}: a token cache, which a training stage reads alone: no other --data_path beside it"
            )
        if path.is_dir():
            raise ValueError(f"{path}: a folder, but neither a JSONL file nor a token cache (no meta.json in it)")
        if not path.is_file():
            raise ValueError(
                f"{path}: a pipe or a device, but rows are read more than once: write them to a file first"
            )
        with open(path, "rb") as raw:
            _unpacked(raw, path)
    return paths


@dataclass
class RowCounts:
    """What the rows of a file, or of a part of it, were: whatever is left out is counted and named."""

    rows: int = 0
    bad: int = 0
    empty: int = 0  # without words; nothing is wrong with them
    examples: list[str] = field(default_factory=list)  # the first five bad ones, "line: reason"
    notes: dict[str, list[int]] = field(default_factory=dict)  # what dataset.py reports -> [rows, line of the first]

    def read(self, number: int, line: bytes, read: Callable[[dict, set[str]], Any]) -> Any:
        """What `read` makes of a line, or None where it is left out; counted either way."""
        self.rows += 1
        notes: set[str] = set()
        try:
            content = read(parse_line(line), notes)
        except EmptyRow:
            self.empty += 1
            return None
        except BadRow as error:
            self.bad += 1
            self.examples = [*self.examples, f"{number}: {error}"][:5]
            return None
        for what in notes:
            self.notes.setdefault(what, [0, number])[0] += 1
        return content

    def add(self, later: "RowCounts") -> None:
        """Together with the rows of a later part."""
        self.rows, self.bad, self.empty = self.rows + later.rows, self.bad + later.bad, self.empty + later.empty
        self.examples = [*self.examples, *later.examples][:5]
        for what, (rows, first) in later.notes.items():
            self.notes.setdefault(what, [0, first])[0] += rows

    def notes_of(self, topic: str) -> dict[str, int]:
        """Return {name: rows} of the notes "topic name"."""
        return {what.split(" ", 1)[1]: rows for what, (rows, _) in self.notes.items() if what.startswith(f"{topic} ")}


@dataclass
class RowReport:
    """The counts of every file, and what is said of them: in the first start, and whenever their cache is opened."""

    strict: bool = False
    files: dict[str, RowCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path], strict: bool) -> "RowReport":
        """With an entry for every file: one without a line is refused, too."""
        return cls(strict, {str(path): RowCounts() for path in paths})

    def add(self, path: Path | str, counts: RowCounts) -> None:
        self.files.setdefault(str(path), RowCounts()).add(counts)
        self.stop_if_strict()

    def stop_if_strict(self) -> None:
        """ValueError for the first bad row, or field that is not used, under --strict_data."""
        for name, counts in self.files.items() if self.strict else ():
            unused = sorted((first, what) for what, (_, first) in counts.notes.items() if what.startswith("field "))
            lines = [*counts.examples[:1], *(f"{first}: {what} is not used" for first, what in unused[:1])]
            for line in lines:
                raise ValueError(f"{printable(f'{name}:{line}')} (--strict_data stops at the first bad row)")

    def refuse(self, valid: str) -> None:
        """ValueError for a file of which most rows, or more than 1 % and more than 10, are bad, or nothing is good."""
        for name, counts in self.files.items():
            named = "\n  ".join([printable(f"{name}:{line}") for line in counts.examples] + [f"a valid line: {valid}"])
            if counts.bad > 0.5 * counts.rows or (counts.bad > 10 and counts.bad > 0.01 * counts.rows):
                share = "more than 1 %" if counts.bad < counts.rows else "so there is no usable row in it"
                raise ValueError(
                    f"{printable(name)}: {counts.bad} of {counts.rows} rows are bad, {share}: is this the right file "
                    f"and schema?\n  {named}"
                )
            if counts.bad + counts.empty == counts.rows:
                raise ValueError(f"{printable(name)}: no usable row in it, {counts.empty} are empty\n  {named}")

    def tell(self) -> None:
        """What was left out, and what was read otherwise than it may be meant."""
        for name, counts in self.files.items():
            name = printable(name)
            if counts.bad:
                named = "\n  ".join(printable(f"{name}:{line}") for line in counts.examples)
                warn(f"{name}: skipped {counts.bad} bad rows of {counts.rows}, the first:\n  {named}")
            if counts.empty:
                warn(f"{name}: left out {counts.empty} rows of {counts.rows}, which are empty")
            for what, rows in counts.notes_of("field").items():
                warn(f"{name}: field {printable(what)} of {rows} rows is not used")
            if broken := counts.notes_of("tags").get("broken"):
                warn(f"{name}: {broken} rows hold some of {' '.join(TAGS)}, but not all of them in this order")
            if tokens := counts.notes_of("special_token"):
                held = ", ".join(f"{printable(token)} in {rows} rows" for token, rows in tokens.items())
                out = "take them out of the file"
                if counts.notes_of("schema").keys() == {"text"}:
                    out += ", or give --split_on_special_tokens if <s> and </s> separate documents"
                warn(f"{name}: special tokens in the texts are trained on as ordinary characters: {held}; {out}")

    def totals(self) -> dict[str, Any]:
        """The counts of all files together."""
        counts = list(self.files.values())
        sums = {name: sum(getattr(one, name) for one in counts) for name in ("rows", "bad", "empty")}
        examples = [f"{name}:{line}" for name, one in self.files.items() for line in one.examples]
        return sums | {"examples": examples[:5]}

    def finish(self, valid: str) -> None:
        """Refuse or tell."""
        self.refuse(valid)
        self.tell()
