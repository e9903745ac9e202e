"""Records of scored rows: read a file's items, name its file of records, and read the records of an earlier run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.checkpoint.weights import config_dict, weights_hash
from engine.corpus import jsonl
from engine.files import hash_file, read_log
from engine.score import answers, multiple_choice
from engine.score.loglikelihood import Text
from engine.tokenizer import fingerprint
from model import SpongeBob

VERSION = 4  # part of the records' key: raise it when a row would be scored differently than before


@dataclass(frozen=True)
class EvalSettings:
    """Everything that metrics depend on, except weights and rows."""

    rows: int = 200  # first good rows of each file (0: all)
    max_new_tokens: int = 512
    num_fewshot: tuple[int, ...] = (0, 5)  # examples before a multiple-choice question
    chats: bool = True  # whether multiple choice is asked with roles
    dtype: str = "float32"


def read_items(path: Path, limit: int) -> list:
    """Read Text, Turn and Question items of the first `limit` good rows (0: all); bad rows are counted and named."""
    counts = jsonl.RowCounts()
    lines, zero_fields = jsonl.read_lines(path), jsonl.find_zero_fields(path)
    rows = (counts.read(number, line, partial(_items_of, number), zero_fields) for number, line in lines)
    good_rows = (items for items in rows if items is not None)
    items = list(chain.from_iterable(islice(good_rows, limit or None)))
    report = jsonl.RowReport(False, {str(path): counts})
    report.check_bad_rows(SFTDataset.valid)
    report.warn_skipped()
    return items


def _items_of(number: int, row: dict, notes: set[str]) -> list:
    task = str(row["task"]) if "task" in row else None
    if SFTDataset.holds(row):
        return answers.split_turns(number, SFTDataset.read(row, notes), task)
    if "choices" in row:
        return [multiple_choice.read_question(number, row)]
    return [Text(number, PretrainDataset.read(row, notes), task)]


def records_path(model: SpongeBob, tokenizer: Tokenizer, path: Path, folder: Path, settings: EvalSettings) -> Path:
    """Name the file of records by a key of everything they depend on."""
    shape, weights = config_dict(model.config), weights_hash(model.state_dict())
    identity = [VERSION, weights, shape, hash_file(path), fingerprint(tokenizer), asdict(settings)]
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    return folder / f"{path.name.split('.')[0]}-{key}.jsonl"


def read_records(path: Path) -> dict[tuple[int, int], dict]:
    """Read a file's complete records by (row, turn)."""
    return {record_key(record): record for record in read_log(path)}


def record_key(record: dict) -> tuple[int, int]:
    """Return (row, turn), or (row, 0) for rows without turns."""
    return record["row"], record.get("turn", 0)


def read_scores(path: Path) -> dict[str, dict]:
    """Read {file name: its metrics} of a checkpoint; empty without such a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
