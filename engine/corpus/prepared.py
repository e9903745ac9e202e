"""Clean rows -> the files of the stages: repeats dropped, conversations cut by length, and a list of what was done.

prepared/  pretrain.jsonl, sft_512.jsonl, sft_1024.jsonl, r1_1024.jsonl   rows of each stage, if there are any
           dropped.jsonl.gz   every row that is in none of them, with its file, line and rule
           prepared.json      counts, examples, versions; report.html shows the same
"""

import importlib.metadata
import json
import platform
import shlex
import unicodedata
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dataset import NO_LOSS, Document, SFTDataset
from engine.console import printable
from engine.corpus.cleaned_rows import CleanedRows, content_of, line_of
from engine.corpus.dropped_rows import MAX_EXAMPLES, DroppedRows, excerpt
from engine.corpus.repeats import find_repeats, row_text
from engine.corpus.rules import RULES, Content
from engine.corpus.tiktoken_backend import start_encoder
from engine.corpus.token_cache import TIKTOKEN_MIN_BYTES
from engine.corpus.worker_pool import map_in_order
from engine.flags import ROOT
from engine.reasoning import tag_form
from engine.schemas import is_trained
from engine.tokenizer import fingerprint

SHORT, LONG = 512, 1024  # tokens of a row in SFT.py, and in SFT.py --long and distill.py
COMMANDS = {  # what each file is for, in the order of the stages
    "pretrain.jsonl": "python pretrain.py",
    "sft_512.jsonl": "python SFT.py",
    "sft_1024.jsonl": "python SFT.py --long",
    "r1_1024.jsonl": "python distill.py",
}
RECORDS = ("dropped.jsonl.gz", "prepared.json", "report.html")
LIBRARIES = ("numpy", "tokenizers", "ftfy", "opencc", "chardet", "resiliparse", "pyarrow")
CHARACTERS = ("characters", (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000))
TOKENS = ("tokens", (64, 128, 256, 512, 768, 1024))
NAMED_FILES = 5  # of those that are left out for one reason
ROWS_AT_ONCE = 256  # conversations that a process encodes
MOST_CLUSTERS, MOST_COPIES = 10, 5


# ------------------------------------------------------------------------------------------------- repeats


class DroppedRepeats(NamedTuple):
    """Rows that repeat another one.

    Attributes:
        keep: Whether a row stays, (rows,) bool.
        exact, near: Rows that are dropped.
        clusters: The largest, as prepared.json has them.
    """

    keep: np.ndarray
    exact: int
    near: int
    clusters: list[dict]


def drop_repeats(rows: CleanedRows, on: Collection[str], dropped: DroppedRows) -> DroppedRepeats:
    """Find the rows that repeat another one, within a file and across files.

    Args:
        rows: Clean rows.
        on: Names of the rules that are on.
        dropped: Gets the repeats.
    """
    repeats = find_repeats(rows.hashes, rows.bands, rows.lengths, partial(_text_of, rows))
    if "exact_repeat" not in on:
        kept_row = np.where(repeats.exact, np.arange(len(rows)), repeats.kept_row)
        repeats = repeats._replace(kept_row=kept_row, exact=np.zeros_like(repeats.exact))
    for row, content in read_rows(rows, np.flatnonzero(~repeats.keep)):
        rule = "exact_repeat" if repeats.exact[row] else "near_repeat"
        dropped.write(*place(rows, row), rule, content)
    num_exact, num_dropped = int(repeats.exact.sum()), int((~repeats.keep).sum())
    clusters = [_describe_cluster(rows, cluster) for cluster in repeats.clusters(MOST_CLUSTERS)]
    return DroppedRepeats(repeats.keep, num_exact, num_dropped - num_exact, clusters)


def place(rows: CleanedRows, row: int) -> tuple[str, int]:
    """Return the name of the file that a row comes from, and its line there."""
    return rows.files[rows.file_of[row]].name, int(rows.numbers[row])


def read_rows(rows: CleanedRows, numbers: np.ndarray) -> Iterator[tuple[int, Content]]:
    """Yield (row, content) of some rows."""
    for row, line in zip(numbers.tolist(), rows.read_lines(numbers), strict=True):
        yield row, content_of(line)


def _text_of(rows: CleanedRows, row: int) -> str:
    return row_text(content_of(next(rows.read_lines([row]))))


def _describe_cluster(rows: CleanedRows, cluster: np.ndarray) -> dict:
    texts = []
    for row, content in read_rows(rows, cluster[: 1 + MOST_COPIES]):
        name, number = place(rows, row)
        texts.append({"file": name, "line": number, "text": excerpt(content)})
    return {"rows": len(cluster), "kept": texts[0], "dropped": texts[1:]}


# ------------------------------------------------------------------------------------------------- cutting


def cut(messages: list[dict], document: Document, end_id: int | None, row_len: int = LONG) -> tuple[list[dict], int]:
    """Return the turns up to the last answer that fits a row, and the tokens that they take there.

    The stages count as well: a conversation fits if its last learned token is predicted within a row.

    Args:
        messages: A conversation.
        document: The same, encoded.
        end_id: Id of </s>.
        row_len: Tokens of a row.
    Returns:
        No messages where not even the first answer fits.
    """
    ends = np.flatnonzero((document.classes != NO_LOSS) & (document.ids == end_id))
    num_answers = int((ends <= row_len).sum())
    if not num_answers:
        return [], 0
    answers = [number for number, message in enumerate(messages) if is_trained(message)]
    return messages[: answers[num_answers - 1] + 1], int(ends[num_answers - 1])


def output_of(messages: list[dict], num_tokens: int) -> str:
    """Return the file that a conversation belongs to: with a thought, short or long."""
    answers = (message["content"] for message in messages if is_trained(message))
    if any(tag_form(answer) == "whole" for answer in answers):
        return "r1_1024.jsonl"
    return "sft_512.jsonl" if num_tokens <= SHORT else "sft_1024.jsonl"


_dataset: SFTDataset


def _start_worker(tokenizer_json: str, use_tiktoken: bool) -> None:
    global _dataset
    _dataset = SFTDataset(start_encoder(tokenizer_json, use_tiktoken))  # pyright: ignore[reportArgumentType]


def _cut_rows(numbers: list[int], lines: list[bytes]) -> list[tuple[int, str, bytes, int, bool]]:
    """Return (row, its file or "", its line, its tokens, whether it lost turns) of conversations."""
    conversations: list[list[dict]] = [json.loads(line)["conversations"] for line in lines]
    end_id = _dataset.eos
    results = []
    for number, messages, line, document in zip(
        numbers, conversations, lines, _dataset.encode(conversations), strict=True
    ):
        kept, num_tokens = cut(messages, document, end_id)
        is_cut = any(map(is_trained, messages[len(kept) :]))
        line = line_of(kept) + b"\n" if is_cut else line
        results.append((number, output_of(kept, num_tokens) if kept else "", line, num_tokens, is_cut))
    return results


class Lengths:
    """Rows of a file by their length.

    Args:
        unit: "characters" or "tokens".
        bounds: Upper bounds that the report shows.
    """

    def __init__(self, unit: str, bounds: Sequence[int]):
        self.unit, self.bounds = unit, bounds
        self.rows = self.total = 0
        self.counts = [0] * (len(bounds) + 1)

    def add(self, length: int) -> None:
        """Count a row."""
        self.rows += 1
        self.total += length
        self.counts[bisect_left(self.bounds, length)] += 1

    def histogram(self) -> list[list[int | None]]:
        """Return [[upper bound, rows up to it]]; the last has no bound."""
        return [[bound, count] for bound, count in zip((*self.bounds, None), self.counts, strict=True)]


class Written(NamedTuple):
    """Rows in the files of the stages.

    Attributes:
        outputs: {file: its rows, bytes, and characters of texts or tokens of conversations}.
        lengths: {file: [[upper bound, rows]]}, of texts in characters, of conversations in tokens.
        num_cut: Conversations that lost last turns.
        kept: Whether a row is in any of the files, (rows,) bool.
    """

    outputs: dict[str, dict[str, int]]
    lengths: dict[str, list[list[int | None]]]
    num_cut: int
    kept: np.ndarray


def write_rows(
    rows: CleanedRows, keep: np.ndarray, folder: Path, tokenizer: Tokenizer, dropped: DroppedRows, num_workers: int
) -> Written:
    """Write the texts as they are, and the conversations by their length.

    Args:
        rows: Clean rows.
        keep: Which of them, (rows,) bool.
        folder: Where to.
        tokenizer: The tokenizer of the stages.
        dropped: Gets the conversations of which nothing fits.
        num_workers: Processes.
    """
    kept, num_cut = keep.copy(), 0
    lengths = {name: Lengths(*(CHARACTERS if name == "pretrain.jsonl" else TOKENS)) for name in COMMANDS}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in COMMANDS}
        bar = stack.enter_context(tqdm(desc="writing", total=int(keep.sum()), unit="rows", disable=None))
        texts = np.flatnonzero(keep & (rows.is_text == 1))
        for row, line in zip(texts, rows.read_lines(texts), strict=True):
            files["pretrain.jsonl"].write(line)
            lengths["pretrain.jsonl"].add(int(rows.lengths[row]))
            bar.update()
        batches = _batches(rows, np.flatnonzero(keep & (rows.is_text == 0)))
        setup = (tokenizer.to_str(), rows.path.stat().st_size >= TIKTOKEN_MIN_BYTES)
        for results in map_in_order(_cut_rows, batches, _start_worker, setup, num_workers):
            for row, name, line, num_tokens, is_cut in results:
                num_cut += is_cut
                if name:
                    files[name].write(line)
                    lengths[name].add(num_tokens)
                else:
                    kept[row] = False
                    dropped.write(*place(rows, row), "too_long", content_of(line))
                bar.update()
    outputs = {}
    for name, of_file in lengths.items():
        if of_file.rows:
            size = (folder / name).stat().st_size
            outputs[name] = {"rows": of_file.rows, "bytes": size, of_file.unit: of_file.total}
        else:
            (folder / name).unlink()
    return Written(outputs, {name: lengths[name].histogram() for name in outputs}, num_cut, kept)


def _batches(rows: CleanedRows, numbers: np.ndarray) -> Iterator[tuple[list[int], list[bytes]]]:
    for begin in range(0, len(numbers), ROWS_AT_ONCE):
        batch = numbers[begin : begin + ROWS_AT_ONCE].tolist()
        yield batch, list(rows.read_lines(batch))


# ------------------------------------------------------------------------------------------------- prepared.json


def summarize(
    rows: CleanedRows,
    on: Collection[str],
    repeats: DroppedRepeats,
    written: Written,
    dropped: DroppedRows,
    left: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Return the content of prepared.json: equal for any number of processes, on any machine.

    Args:
        rows, repeats, written, dropped: What the steps found and made.
        on: Names of the rules that are on.
        left: Name and reason of each file that was not read.
        tokenizer: The tokenizer of the lengths.
    """
    num_kept = np.bincount(rows.file_of[written.kept], minlength=len(rows.files)).tolist()
    files = []
    for file, counts, kept in zip(rows.files, rows.counts, num_kept, strict=True):
        known = {"name": file.name, "type": file.type, "encoding": file.encoding, "bytes": file.path.stat().st_size}
        of_rows = {"rows": counts.rows, "kept": kept, "dropped": dict(sorted(dropped.counts[file.name].items()))}
        files.append(known | of_rows | {"notes": {note: rows for note, (rows, _) in sorted(counts.notes.items())}})
    num_dropped = sum(dropped.counts.values(), Counter())
    rules = []
    for rule in RULES:
        found = {"changed": rows.changed[rule.name], "dropped": num_dropped[rule.name]}
        examples = [*rows.examples[rule.name], *dropped.examples[rule.name]][:MAX_EXAMPLES]
        rules.append({"name": rule.name, "on": rule.on is None or rule.name in on, **found, "examples": examples})
    return {
        "libraries": _versions(),
        "tokenizer": fingerprint(tokenizer),
        "files": files,
        "left": [list(file) for file in left],
        "rules": rules,
        "outputs": written.outputs,
        "cut": written.num_cut,
        "lengths": written.lengths,
        "languages": dict(sorted(rows.languages.items())),
        "repeats": {
            "exact": repeats.exact,
            "near": repeats.near,
            "held_out": {reason: rows.held_out[reason] for reason in ("exact", "near", "contained")},
            "clusters": repeats.clusters,
        },
    }


def describe(prepared: Mapping[str, Any]) -> str:
    """Return lines about the rows that were kept, changed and dropped, from the content of prepared.json."""
    num_rows, num_kept = (sum(file[name] for file in prepared["files"]) for name in ("rows", "kept"))
    lines = [f"kept {num_kept:,} of {num_rows:,} rows of {len(prepared['files']):,} files"]
    for what in ("changed", "dropped"):
        if counts := [f"{rule['name']} {rule[what]:,}" for rule in prepared["rules"] if rule[what]]:
            lines.append(f"{what}: {', '.join(counts)}")
    if prepared["cut"]:
        lines.append(f"{prepared['cut']:,} conversations lost their last turns, which do not fit {LONG:,} tokens")
    return "\n".join(lines)


def describe_left(left: Sequence[tuple[str, str]]) -> str:
    """Return a line for each reason why files were left out, which names the first of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in left:
        names[reason].append(printable(name))
    lines = [f"{len(left):,} files are left out:"]
    for reason, files in names.items():
        more = f" and {len(files) - NAMED_FILES:,} more" if len(files) > NAMED_FILES else ""
        lines.append(f"  {reason}: {', '.join(files[:NAMED_FILES])}{more}")
    return "\n".join(lines)


def next_commands(prepared: Mapping[str, Any], out: Path, tokenizer_dir: Path) -> list[str]:
    """Return the commands of the stages that read what was prepared.

    Args:
        prepared: Content of prepared.json.
        out: Folder of the files.
        tokenizer_dir: The tokenizer that conversations were cut by.
    """
    tokenizer = ""
    if tokenizer_dir != ROOT / "spongebob_tokenizer":
        tokenizer = f" --tokenizer_dir {shlex.quote(str(tokenizer_dir))}"
    names = [name for name in COMMANDS if name in prepared["outputs"]]
    return [f"{COMMANDS[name]} --data_path {shlex.quote(str(out / name))}{tokenizer}" for name in names]


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove the files of a folder that have other names."""
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


def _versions() -> dict[str, str]:
    """Return the versions of all that decides the bytes of the rows."""
    versions = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    versions["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
