"""The rows that a model was trained on, by their hashes: NAME.rows.npy next to its weights.

It holds the rows that the stage's training draws from, also where it stopped before it had read them all, and those of
every stage before it. The .json of the weights has the digest of the hashes, so a file of other weights is not taken.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint.weights import read_meta
from engine.files import atomic_write


@dataclass(frozen=True)
class TrainedRows:
    """Rows of a model's training.

    Args:
        hashes: Their hashes (held_out.row_hash), sorted, each once, (rows,) uint64.
        is_complete: Whether they are those of all stages; the rows of weights published by others are not known.
    """

    hashes: np.ndarray
    is_complete: bool

    def entry(self) -> dict:
        """Return what the .json of the weights says about them."""
        digest = hashlib.blake2b(self.hashes.tobytes(), digest_size=16).hexdigest()
        return {"digest": digest, "is_complete": self.is_complete}

    def save(self, path: Path) -> None:
        """Write the hashes as .npy, whole or not at all.

        Raises:
            OSError: Names the file, the reason and the flag that chooses another folder.
        """

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.save(file, self.hashes)

        try:
            atomic_write(path, write)
        except OSError as error:
            raise OSError(f"{error}; make room or choose another folder by --save_dir") from None

    def overlap(self, hashes: np.ndarray) -> dict:
        """Count the rows, (n,) uint64 hashes, that are among them: {"trained_on", "of", "is_complete"}."""
        trained_on = int(np.isin(hashes, self.hashes).sum())
        return {"trained_on": trained_on, "of": len(hashes), "is_complete": self.is_complete}


def rows_file(weights: Path) -> Path:
    """Return the file of hashes that belongs to a .pth."""
    return weights.with_suffix(".rows.npy")


def collect(own: Callable[[], np.ndarray] | None, parent: tuple[str, str] | None) -> TrainedRows | None:
    """Return the rows of a stage and of all before it; None if the stage's are not known.

    Args:
        own: Returns the hashes of the rows that the stage's training draws from, (n,) uint64.
        parent: Path and hash of the weights that it starts from; None: fresh weights.
    """
    if own is None:
        return None
    earlier = read(Path(parent[0]), parent[1]) if parent else TrainedRows(np.empty(0, np.uint64), True)
    if earlier is None:
        return TrainedRows(np.unique(own()), False)
    return TrainedRows(np.union1d(earlier.hashes, own()), earlier.is_complete)


def read(path: Path, weights: str) -> TrainedRows | None:
    """Read the rows of a checkpoint; None if they are missing, damaged, or of other weights.

    Args:
        path: The .pth.
        weights: The hash of its weights.
    """
    meta = read_meta(path)
    entry = meta.get("trained_rows") or {}
    try:
        with open(rows_file(path), "rb") as file:
            rows = TrainedRows(np.lib.format.read_array(file, allow_pickle=False), entry["is_complete"])
    except (OSError, ValueError, EOFError, TypeError, KeyError):
        return None
    return rows if rows.entry() == entry and meta.get("weights") == weights else None
