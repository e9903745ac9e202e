"""Reading JSONL as it comes: plain or .gz, BOM, CRLF, blank lines, no last newline, lines of any length."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.console import warn

BLOCK = 4 << 20  # bytes read at a time; a tokenising process gets one block
BOM = b"\xef\xbb\xbf"


def blocks(path: Path, advance: Callable[[int], object] = lambda count: None) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) of a .jsonl or .jsonl.gz file, about BLOCK bytes at a time.

    `advance` is called with the bytes of the file (compressed, if it is) that were read since the last call.
    """
    with open(path, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        number, seen, held = 1, 0, []
        while chunk := _read(stream, path):
            if number == 1 and not held:
                chunk = chunk.removeprefix(BOM)
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


def _read(stream: io.BufferedIOBase, path: Path) -> bytes:
    try:
        return stream.read(BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # a download that broke off
        raise ValueError(f"{path}: damaged .gz file ({error}); fetch it again") from None


def lines(first: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """The (number, content) of a block's lines; blank ones are no rows."""
    for number, line in enumerate(block.split(b"\n"), first):
        if line := line.strip():
            yield number, line


def source_files(data_path: Sequence[str | Path]) -> list[Path]:
    """The JSONL files a user named, or an error that says which is not there."""
    paths = [Path(path) for path in data_path]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        if path.is_dir():
            raise ValueError(f"{path}: a folder, but neither a JSONL file nor a token cache (no meta.json in it)")
    return paths


@dataclass
class RowReport:
    """How many rows were read and which were bad: counted, the first five named, too many refused."""

    strict: bool = False
    rows: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, path: Path, rows: int, bad: list[tuple[int, str]]) -> None:
        self.rows += rows
        self.bad += len(bad)
        self.examples += [f"{path}:{number}: {reason}" for number, reason in bad][: 5 - len(self.examples)]
        self.stop_if_strict()

    def stop_if_strict(self) -> None:
        if self.bad and self.strict:
            raise ValueError(f"{self.examples[0]} (--strict_data stops at the first bad row)")

    def finish(self) -> None:
        """Refuse a file of which more than 1 % and more than 10 rows are bad, or nothing is good."""
        named = "\n  ".join(self.examples)
        if self.bad > 10 and self.bad > 0.01 * self.rows:
            raise ValueError(
                f"{self.bad} of {self.rows} rows are bad, more than 1 %: is this the right file and schema?\n  {named}"
            )
        if self.bad == self.rows:
            raise ValueError("no usable row in the data" + (f"\n  {named}" if named else ""))
        if self.bad:
            warn(f"skipped {self.bad} bad rows of {self.rows}, the first:\n  {named}")
