"""Files -> clean rows in one file on the disk: the second step of prepare_data.py.

In memory a row is its hashes and a few numbers, at most 200 bytes: 24 GB of rows fit a small machine.
"""

import json
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset import PretrainDataset, SFTDataset
from engine.console import warn
from engine.corpus.boilerplate import LineSample
from engine.corpus.dropped_rows import MAX_EXAMPLES, DroppedRows
from engine.corpus.held_out import row_hash
from engine.corpus.jsonl import RowCounts, RowReport
from engine.corpus.readers import Block, InputFile, parse_block, read_blocks
from engine.corpus.repeats import HeldOut, row_text
from engine.corpus.rules import Content, clean
from engine.corpus.shingles import BANDS, sign_many
from engine.corpus.worker_pool import map_in_order
from engine.schemas import ROLE_KEYS, BadRow, DroppedRow, EmptyRow

RULE_OF = {EmptyRow: "empty_row", DroppedRow: "nothing_to_learn", BadRow: "broken_row"}
HAN_RE, LATIN_RE = re.compile("[\u4e00-\u9fff]+"), re.compile("[A-Za-z]+")
OTHER_RE = re.compile(r"[^\W\d_A-Za-z\u4e00-\u9fff]+")  # letters of other scripts, and those with accents
CONVERSATION = np.uint64(0x9E3779B97F4A7C15)  # odd: 0, which says that a row is not compared, stays 0
WARNED_FILES = 10
LANGUAGE_CHARACTERS = 400  # of a row that are looked at


class Work(NamedTuple):
    """Data that a process needs to clean any block."""

    files: Sequence[InputFile]
    on: Collection[str]  # names of rules
    held_out: HeldOut | None
    boilerplate: Mapping[str, Collection[int]]  # of each source


class CleanedBlock(NamedTuple):
    """Rows of a block, clean or dropped."""

    file: int
    counts: RowCounts
    lines: list[bytes]  # of the rows that are left, without line breaks
    numbers: list[int]  # line of the source, or row, of each
    is_text: list[bool]
    hashes: list[int]
    lengths: list[int]  # characters of what is compared
    bands: np.ndarray  # (rows, BANDS) uint64
    dropped: list[tuple[int, str, Content | BadRow]]  # number, rule, the row or what is wrong with it
    changed: Counter[str]
    examples: dict[str, list[dict]]
    languages: Counter[str]
    held_out: Counter[str]


@dataclass
class CleanedRows:
    """Clean rows of all files.

    Attributes:
        path: File of their lines.
        files: The files that they come from.
        counts: Of each file, what reading it found.
        changed: Rows by rule.
        examples: {rule: examples}.
        languages, held_out: Rows by language, and by the reason of HeldOut.
        file_of, numbers: File and line of each row, (rows,).
        offsets: Where its line begins in `path`, (rows,) int64.
        is_text: 1 for a text, 0 for a conversation, (rows,) int8.
        lengths: Characters of what is compared, (rows,) int64.
        hashes, bands: held_out.row_hash and shingles.sign_many, (rows,) and (rows, BANDS) uint64.
    """

    path: Path
    files: Sequence[InputFile]
    counts: list[RowCounts]
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict]] = field(default_factory=lambda: defaultdict(list))
    languages: Counter[str] = field(default_factory=Counter)
    held_out: Counter[str] = field(default_factory=Counter)
    file_of: np.ndarray = field(init=False)
    numbers: np.ndarray = field(init=False)
    offsets: np.ndarray = field(init=False)
    is_text: np.ndarray = field(init=False)
    lengths: np.ndarray = field(init=False)
    hashes: np.ndarray = field(init=False)
    bands: np.ndarray = field(init=False)

    def __len__(self) -> int:
        return len(self.hashes)

    def read_lines(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Read the lines of some rows."""
        with open(self.path, "rb") as file:
            for row in rows:
                file.seek(self.offsets[row])
                yield file.readline()


def content_of(line: bytes) -> Content:
    """Return the text or the messages of a line that `line_of` made."""
    row = json.loads(line)
    return row.get("text", row.get("conversations"))


def line_of(content: Content) -> bytes:
    """Return a text or messages as a row of JSON, without a line break."""
    row = {"text": content} if isinstance(content, str) else {"conversations": content}
    return json.dumps(row, ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------- all files


def clean_files(
    files: Sequence[InputFile],
    path: Path,
    on: Collection[str],
    held_out: HeldOut | None,
    dropped: DroppedRows,
    num_workers: int,
) -> CleanedRows:
    """Apply the rules to every row of some files.

    Args:
        files: The files, in the order of their rows.
        path: File to write.
        on: Names of the rules that are on.
        held_out: Rows that must not be learned.
        dropped: Gets the rows that a rule drops.
        num_workers: Processes.
    """
    work = Work(files, on, held_out, _find_boilerplate(files) if "boilerplate" in on else {})
    rows = CleanedRows(path, files, [RowCounts() for _ in files])
    columns = {"file_of": array("i"), "numbers": array("I"), "offsets": array("q"), "is_text": array("b")}
    columns |= {"lengths": array("I"), "hashes": array("Q")}
    bands = array("Q")
    size = sum(file.path.stat().st_size for file in files)
    with open(path, "wb") as out, tqdm(desc="cleaning", total=size, unit="B", unit_scale=True, disable=None) as bar:
        blocks = _number_blocks(files, bar.update)
        for block in map_in_order(_clean_block, blocks, _start_worker, (work,), num_workers):
            _count(rows, block)
            for number, rule, row in block.dropped:
                dropped.write(files[block.file].name, number, rule, row)
            for line in block.lines:
                columns["offsets"].append(out.tell())
                out.write(line + b"\n")
            columns["file_of"].extend([block.file] * len(block.lines))
            for name in ("numbers", "is_text", "lengths", "hashes"):
                columns[name].extend(getattr(block, name))
            bands.frombytes(block.bands.tobytes())
    for name, column in columns.items():
        setattr(rows, name, np.asarray(column))
    rows.bands = np.asarray(bands).reshape(-1, BANDS)
    _warn(rows)
    return rows


def _count(rows: CleanedRows, block: CleanedBlock) -> None:
    rows.counts[block.file].add(block.counts)
    rows.changed += block.changed
    rows.languages += block.languages
    rows.held_out += block.held_out
    for rule, examples in block.examples.items():
        rows.examples[rule] += [{"file": rows.files[block.file].name} | example for example in examples]
        del rows.examples[rule][MAX_EXAMPLES:]


def _warn(rows: CleanedRows) -> None:
    """Warn of what the rows of the first files hold that is not read, as training would: the new files lack it."""
    noted = {}
    for file, counts in zip(rows.files, rows.counts, strict=True):
        if counts.bad or counts.dropped or any(not note.startswith("schema ") for note in counts.notes):
            noted[file.name] = counts
    RowReport(False, dict(islice(noted.items(), WARNED_FILES))).warn_skipped()
    if len(noted) > WARNED_FILES:
        warn(f"and {len(noted) - WARNED_FILES:,} more files: report.html has all")


def _number_blocks(files: Sequence[InputFile], advance: Callable[[int], object]) -> Iterator[tuple[int, Block]]:
    for number, file in enumerate(files):
        for block in read_blocks(file, advance):
            yield number, block


def read_held_out(files: Sequence[InputFile], on: Collection[str]) -> HeldOut:
    """Read rows that must not be learned, as they are and as the rules that are on leave them.

    Of a row that is neither a text nor a conversation, as a question with its choices, all strings count.

    Raises:
        ValueError: A row cannot be read, so it could get in; names its line.
    """
    texts = set()
    for file in files:
        for block in read_blocks(file):
            for number, row in parse_block(file, block):
                if isinstance(row, BadRow):
                    raise ValueError(f"--against {file.path}:{number}: {row}")
                try:
                    content = content_of_row(row)
                except BadRow:
                    content = "\n".join(_strings(row))
                texts |= {row_text(version) for version in (content, clean(content, on).content) if version}
    return HeldOut(sorted(filter(str.strip, texts)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        parts = value
        if isinstance(value, dict):
            parts = [part for name, part in value.items() if name not in ROLE_KEYS]
        yield from chain.from_iterable(map(_strings, parts))


def _find_boilerplate(files: Sequence[InputFile]) -> dict[str, Collection[int]]:
    """Return the lines of most documents of each source, by their hashes."""
    samples: dict[str, LineSample] = defaultdict(LineSample)
    for file in files:
        for block in read_blocks(file):
            for _, row in parse_block(file, block):
                text = row.get("text") if isinstance(row, dict) else None
                if isinstance(text, str):
                    samples[source_of(file)].add(text)
    return {source: sample.boilerplate() for source, sample in samples.items()}


def source_of(file: InputFile) -> str:
    """Return what a file's documents have in common: a file of many is a source, and a folder of files of one each."""
    is_document = file.type in ("text", "markdown", "html") and file.split_text == "none"
    return file.name.rpartition("/")[0] if is_document else file.name


# ------------------------------------------------------------------------------------------------- one block

_work: Work


def _start_worker(work: Work) -> None:
    global _work
    _work = work


def _clean_block(file: int, block: Block) -> CleanedBlock:
    source = _work.files[file]
    boilerplate = _work.boilerplate.get(source_of(source), ())
    counts, changed = RowCounts(), Counter()
    examples: dict[str, list[dict]] = defaultdict(list)
    numbers, contents = [], []
    dropped: list[tuple[int, str, Content | BadRow]] = []
    for number, row in parse_block(source, block):
        try:
            content = counts.count(number, partial(content_of_row, row))
            cleaned = clean(content, _work.on, boilerplate)
        except BadRow as error:
            dropped.append((number, RULE_OF[type(error)], error))
            continue
        changed.update(cleaned.edits.keys())
        for rule, (before, after) in cleaned.edits.items():
            if len(examples[rule]) < MAX_EXAMPLES:
                examples[rule].append({"line": number, "before": before, "after": after})
        if cleaned.content is None:
            dropped.append((number, cleaned.dropped_by, content))
        else:
            numbers.append(number)
            contents.append(cleaned.content)
    texts = list(map(row_text, contents))
    reasons = _work.held_out.reasons(texts) if _work.held_out else [""] * len(texts)
    for number, content, reason in zip(numbers, contents, reasons, strict=True):
        if reason:
            dropped.append((number, "held_out_repeat", content))
    is_kept = [not reason for reason in reasons]
    numbers, contents = list(compress(numbers, is_kept)), list(compress(contents, is_kept))
    texts = list(compress(texts, is_kept))
    is_text = [isinstance(content, str) for content in contents]
    return CleanedBlock(
        file=file,
        counts=counts,
        lines=list(map(line_of, contents)),
        numbers=numbers,
        is_text=is_text,
        hashes=list(map(row_hash, contents)),
        lengths=list(map(len, texts)),
        bands=_sign(texts, is_text),
        dropped=dropped,
        changed=changed,
        examples=examples,
        languages=Counter(map(language_of, texts)),
        held_out=Counter(filter(None, reasons)),
    )


def _sign(texts: list[str], is_text: list[bool]) -> np.ndarray:
    """Return the bands of rows; a text and a conversation share none, as they teach different things."""
    if "near_repeat" not in _work.on:
        return np.zeros((len(texts), BANDS), np.uint64)
    bands = sign_many(texts)
    bands[np.logical_not(is_text)] *= CONVERSATION
    return bands


def content_of_row(row: dict | BadRow, notes: set[str] | None = None) -> Content:
    """Return the text or the messages of a row as it was read, or raise BadRow."""
    if isinstance(row, BadRow):
        raise row
    return (SFTDataset if SFTDataset.holds(row) else PretrainDataset).read(row, notes)


def language_of(text: str) -> str:
    """Return "zh", "en" or "other", by the letters of a text's beginning."""
    text = text[:LANGUAGE_CHARACTERS]
    num_han, num_latin, num_other = (len("".join(letters.findall(text))) for letters in (HAN_RE, LATIN_RE, OTHER_RE))
    if num_han * 4 > num_han + num_latin + num_other:
        return "zh" if num_other * 10 < num_han else "other"
    return "en" if num_latin * 20 > (num_latin + num_other) * 19 else "other"
