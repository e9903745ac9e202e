"""Which rows are held out for validation: a function of the rows' content alone."""

import hashlib
from collections.abc import Sequence

import numpy as np


def line_hash(line: bytes) -> int:
    """64 bits of the line's content: equal lines are held out together, wherever they stand."""
    return int.from_bytes(hashlib.blake2b(line.strip(), digest_size=8).digest(), "little")


def held_out_hashes(files: Sequence[np.ndarray], val_fraction: float) -> np.ndarray:
    """The content hashes, sorted, of the rows that validation keeps; `files` are the hashes of each file, (n,).

    Of every file those with the smallest hashes, at least 64 rows and at most 2,000; what one file holds out is held
    out everywhere. Never more than half of any file, so of equal rows none where they are most of it. A function of the
    content alone: train_tokenizer.py, every stage and every later run agree on it. `val_fraction` 0 keeps none.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be at least 0 and less than 1")
    chosen = [_smallest(hashes, val_fraction) for hashes in files if val_fraction]
    wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *chosen]))
    room = np.array([len(hashes) // 2 for hashes in files])
    found = [np.sort(hashes) for hashes in files]
    rows = [np.searchsorted(part, wanted, "right") - np.searchsorted(part, wanted) for part in found]
    kept = np.zeros(len(wanted), dtype=bool)
    for at, taken in enumerate(np.array(rows).T):  # taken (files,): how often a row stands in each file
        kept[at] = (taken <= room).all()
        room = room - taken * kept[at]
    return wanted[kept]


def _smallest(hashes: np.ndarray, val_fraction: float) -> np.ndarray:
    """The smallest hashes of one file that are enough rows of it, and at most half."""
    room = len(hashes) // 2
    missing = min(max(round(len(hashes) * val_fraction), 64), 2000, room)
    kept = []
    for value, rows in zip(*np.unique(hashes, return_counts=True), strict=True):
        if missing <= 0:
            break
        if rows <= room:  # equal rows are held out together, or not at all
            kept.append(value)
            room, missing = room - rows, missing - rows
    return np.array(kept, dtype=np.uint64)
