"""The rows held out for validation: a function of the rows' content alone."""

import hashlib
from collections.abc import Sequence

import numpy as np


def line_hash(line: bytes) -> int:
    """Return 64 bits of the line's content: equal lines are held out together, in whatever file they are."""
    return int.from_bytes(hashlib.blake2b(line.strip(), digest_size=8).digest(), "little")


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
