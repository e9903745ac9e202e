"""The rows held out for validation: a function of the rows' content alone."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from dataset import DEFAULT_SYSTEM, BorderedDataset, PretrainDataset, SFTDataset
from engine.console import print0
from engine.tokenizer import EOS


def row_hash(content: str | list[dict]) -> int:
    """Return 64 bits of what a row teaches: its text, or the roles and words of its turns.

    Equal rows have equal hashes whatever their schema, other fields, key order, escapes, outer white space or file
    are, and with and without --split_on_special_tokens. The row is spelled as the bundled sample spells it.

    Args:
        content: A text or messages, as `read` of a dataset class returns them.
    """
    if isinstance(content, str):
        row: dict = {"text": EOS.join(BorderedDataset.parts(content))}
    else:
        turns = [{"role": message["role"], "content": message["content"].strip()} for message in content]
        implied = ({"role": "system", "content": DEFAULT_SYSTEM}, {"role": "system", "content": ""})
        row = {"conversations": [turn for turn in turns if turn not in implied]}
    spelling = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(spelling.encode(), digest_size=8).digest(), "little")


def read_row(
    dataset_class: type[PretrainDataset], row: dict, notes: set[str] | None = None
) -> tuple[int, list[str], bool]:
    """Return (hash, texts, whether it is a chat) of a row of any schema, or raise BadRow.

    Args:
        dataset_class: The meaning of a row that is no chat.
        row: A parsed JSONL line.
        notes: As in dataset.py.
    """
    if SFTDataset.holds(row):
        messages = SFTDataset.read_messages(row, notes)
        return row_hash(messages), [message["content"] for message in messages], True
    text = dataset_class.read(row, notes)
    return row_hash(text), dataset_class.parts(text), False


def split_kinds(hashes: np.ndarray, is_first: np.ndarray) -> list[np.ndarray]:
    """Split the hashes of a file's rows into its two kinds, texts and chats; a kind that it lacks is no part of it.

    Each holds out for itself: the same conversations are held out with and without texts next to them.

    Args:
        hashes: Of a file's rows, (rows,) uint64.
        is_first: Which rows are of one kind, (rows,) bool.
    """
    return [part for part in (hashes[is_first], hashes[~is_first]) if len(part)]


def describe_repeated(files: Sequence[np.ndarray]) -> str:
    """Describe how many rows are copies of another one; empty if none is.

    Args:
        files: The hashes of each file's rows, (rows,) uint64 each.
    """
    hashes = np.concatenate(files)
    if not (copies := len(hashes) - len(np.unique(hashes))):
        return ""
    what = f"copies {copies:,} of {len(hashes):,} rows say the same as another one, whatever their id, schema or file"
    return f"{what}: all copies of a row are read, or all are held out"


def merge_same_files(paths: Sequence[Path], keys: Sequence[Hashable]) -> tuple[list[Path], list[int]]:
    """Return (different files, how often each is given), and say which are given more than once.

    Args:
        paths: The files as they were given.
        keys: Something that is equal for each two of them which are the same file.
    """
    same_files: dict[Hashable, list[Path]] = {}
    for path, key in zip(paths, keys, strict=True):
        same_files.setdefault(key, []).append(path)
    for same in same_files.values():
        if len(same) > 1:
            names = ", ".join(dict.fromkeys(map(str, same)))
            print0(
                f"{names}: the same file {len(same)} times; its rows are read as often, and held out as those of one"
            )
    return [same[0] for same in same_files.values()], [len(same) for same in same_files.values()]


def held_out_hashes(files: Sequence[np.ndarray], val_fraction: float) -> np.ndarray:
    """Return the hashes of the rows that validation keeps, sorted, (n,) uint64.

    Of every file those with the smallest hashes, at least 64 rows and at most 2,000; what one file holds out is
    held out everywhere. Never more than half of any file, so of equal rows none where they are most of it. A function
    of the content alone: train_tokenizer.py, every stage and every later run agree on it.

    Args:
        files: The hashes of each file's rows, (rows,) uint64 each.
        val_fraction: Share of each file's rows to hold out; 0 holds out none.
    Raises:
        ValueError: `val_fraction` is negative, or 1 or more.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be at least 0 and less than 1")
    smallest = [_smallest(hashes, val_fraction) for hashes in files if val_fraction]
    candidates = np.unique(np.concatenate([np.empty(0, np.uint64), *smallest]))
    room = np.array([len(hashes) // 2 for hashes in files])
    in_order = [np.sort(hashes) for hashes in files]
    rows = [np.searchsorted(part, candidates, "right") - np.searchsorted(part, candidates) for part in in_order]
    is_held_out = np.zeros(len(candidates), dtype=bool)
    for number, count in enumerate(np.array(rows).T):  # (files,): rows of each file that have this hash
        is_held_out[number] = (count <= room).all()
        room -= count * is_held_out[number]
    return candidates[is_held_out]


def _smallest(hashes: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return the smallest hashes of one file that are enough of its rows, and at most half; (n,) uint64."""
    room = len(hashes) // 2
    missing = min(max(round(len(hashes) * val_fraction), 64), 2000, room)
    smallest = []
    for value, rows in zip(*np.unique(hashes, return_counts=True), strict=True):
        if missing <= 0:
            break
        if rows <= room:  # equal rows are held out together, or not at all
            smallest.append(value)
            room -= rows
            missing -= rows
    return np.array(smallest, dtype=np.uint64)
