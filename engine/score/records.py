"""Records of scored rows: read a file's items, name its file of records, and read the records of an earlier run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.checkpoint.weights import config_dict
from engine.console import printable, warn
from engine.corpus import jsonl
from engine.corpus.held_out import read_row
from engine.files import read_json, read_log
from engine.score import answers, multiple_choice
from engine.score.loglikelihood import Text
from engine.score.multiple_choice import Question
from engine.tokenizer import fingerprint
from model import SpongeBob

VERSION = 5  # part of the records' key: raise it when a row would be scored differently than before
RESULT_KEYS = {"weights", "content", "records", "settings", "rows", "metrics"}
BASELINE_KEYS = {"weights", "records", "metrics"}
METRIC_KEYS = {"value", "low", "high", "chance_level", "n"}


@dataclass(frozen=True)
class EvalSettings:
    """Everything that metrics depend on, except weights and rows."""

    rows: int = 200  # first good rows of each file (0: all)
    max_new_tokens: int = 512
    num_fewshot: tuple[int, ...] = (0, 5)  # examples before a multiple-choice question
    chats: bool = True  # whether multiple choice is asked with roles
    dtype: str = "float32"


def read_files(paths: Sequence[str | Path], limit: int) -> dict[Path, list]:
    """Read the items of all files, before a row of them is scored.

    Args:
        paths: JSONL files; their names must differ. A file that is named again is scored once.
        limit: As in `read_items`.
    Raises:
        ValueError: Two files have the same name, or a file is not JSONL or has too many bad rows.
    """
    files = {path.resolve(): path for path in jsonl.source_files(paths)}.values()
    if repeated := len(paths) - len(files):
        warn(f"--score: {repeated} of {len(paths)} files are named before and scored once")
    if len({path.name for path in files}) < len(files):
        raise ValueError("--score: two files have one name, by which their metrics are stored; rename one of them")
    return {path: read_items(path, limit) for path in files}


def read_items(path: Path, limit: int) -> list:
    """Read Text, Turn and Question items of the first `limit` good rows (0: all); bad rows are counted and named."""
    counts, valid = jsonl.RowCounts(), SFTDataset.valid
    indices: list[tuple[int, int]] = []

    def items_of(number: int, row: dict, notes: set[str]) -> list:
        task = str(row["task"]) if "task" in row else None
        if SFTDataset.holds(row):
            return answers.split_turns(number, SFTDataset.read_messages(row, notes), task)
        if multiple_choice.holds_question(row):
            nonlocal valid
            valid = multiple_choice.VALID
            return [multiple_choice.read_question(number, row, notes, indices)]
        return [Text(number, PretrainDataset.read(row, notes), task)]

    lines, zero_fields = jsonl.read_lines(path), jsonl.find_zero_fields(path)
    rows = (counts.read(number, line, partial(items_of, number), zero_fields) for number, line in lines)
    good_rows = (items for items in rows if items is not None)
    items = list(chain.from_iterable(islice(good_rows, limit or None)))
    name = printable(str(path))
    multiple_choice.check_answers(name, [item for item in items if isinstance(item, Question)], indices)
    report = jsonl.RowReport(False, {str(path): counts})
    report.check_bad_rows(valid)
    report.warn_skipped()
    if lettered := counts.notes.get(multiple_choice.LETTERED):
        warn(f"{name}: the choices of {lettered[0]} rows begin with their letters, which are cut off")
    return items


def read_hashes(path: Path, items: Sequence) -> np.ndarray:
    """Return the content hashes of the rows that `items` are of, (n,) uint64.

    A multiple-choice question is no row that training reads.
    """
    numbers = {item.row for item in items if not isinstance(item, Question)}
    lines = [line for number, line in jsonl.read_lines(path) if number in numbers]
    return np.array([read_row(PretrainDataset, jsonl.parse_line(line))[0] for line in lines], np.uint64)


def records_name(
    file: str, weights: str, content: str, model: SpongeBob, tokenizer: Tokenizer, settings: EvalSettings
) -> str:
    """Name the file of records by a key of everything they depend on.

    Args:
        file: Name of the scored file.
        weights, content: Digests of the weights and of the scored file.
        model, tokenizer, settings: What else its metrics depend on.
    """
    identity = [VERSION, weights, config_dict(model.config), content, fingerprint(tokenizer), asdict(settings)]
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"{file.split('.')[0]}-{key}.jsonl"


def read_records(path: Path) -> dict[tuple[int, int], dict]:
    """Read a file's complete records by (row, turn)."""
    return {record_key(record): record for record in read_log(path) if record.keys() >= {"row", "groups", "sums"}}


def record_key(record: dict) -> tuple[int, int]:
    """Return (row, turn), or (row, 0) for rows without turns."""
    return record["row"], record.get("turn", 0)


def read_scores(path: Path) -> dict[str, dict]:
    """Read {file name: its metrics} of a checkpoint; empty without such a file.

    Raises:
        ValueError: The file is damaged, or of another version of this program.
    """
    advice = "; delete it and score again"
    scores = read_json(path, advice) if path.is_file() else {}
    if invalid := [file for file, result in scores.items() if not _is_result(result)]:
        raise ValueError(f"{path}: what it says of {invalid[0]!r} is not as --score writes it{advice}")
    return scores


def _is_result(result: object) -> bool:
    """Return whether this is what is stored of one file."""
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        return False
    parts = [(result, RESULT_KEYS), (result.get("baseline", result), BASELINE_KEYS)]
    parts += [(metric, METRIC_KEYS) for metric in result["metrics"].values()]
    return all(isinstance(part, dict) and part.keys() >= keys for part, keys in parts)
