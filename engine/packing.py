"""Rows of a fixed length made of several documents, and batches as a pure function of (seed, step).

A document of n tokens has n - 1 predictions, so that is what it takes of a row: inputs and labels are cut from it
separately, and no position is spent on predicting the next document. Row length 6, documents <s>abc</s>, <s>d</s>:

    inputs   <s> a   b   c   | <s> d            The labels are shifted here and nowhere else. The documents of
    labels    a  b   c  </s> |  d  </s>         a row do not see each other in attention (model.attention).

A document that is longer than a row is split into row-long parts; every prediction is still made exactly once.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset import NO_LOSS
from engine.tokens import TokenCache


class Pieces(NamedTuple):
    """What is put into rows: predictions `starts[i]` to `starts[i] + lengths[i]` of the token cache."""

    starts: np.ndarray  # (P,) int64, index of the first input token; its label is the next one
    lengths: np.ndarray  # (P,) int64, at least 1 and at most the row length
    cut: int = 0  # documents that lost tokens


def split_documents(cache: TokenCache, documents: np.ndarray, row_len: int) -> Pieces:
    """All predictions of the documents, in parts of at most `row_len`: nothing is thrown away."""
    starts, lengths = cache.offsets[documents], np.diff(cache.offsets)[documents] - 1
    parts = -(-lengths // row_len)
    owner = np.repeat(np.arange(len(documents)), parts)
    part = np.arange(len(owner)) - np.repeat(parts.cumsum() - parts, parts)
    return Pieces(starts[owner] + part * row_len, np.minimum(lengths[owner] - part * row_len, row_len))


def cut_conversations(cache: TokenCache, documents: np.ndarray, row_len: int) -> Pieces:
    """One piece a conversation; a longer one loses whole last turns, and its tail only if no answer would be left.

    The end mark of an answer is the one control token that is learned, and no text can forge it, so answers end where
    the class is not 0 and the id is </s>. Conversations without a learned token in what is left are dropped.
    """
    starts, lengths = cache.offsets[documents].copy(), np.diff(cache.offsets)[documents] - 1
    too_long = np.flatnonzero(lengths > row_len)
    end_mark = cache.meta["end_id"]
    for i in too_long:
        kept = slice(starts[i] + 1, starts[i] + row_len + 1)  # the labels that fit
        learned = cache.classes[kept] != NO_LOSS
        ends = np.flatnonzero(learned & (cache.ids[kept] == end_mark))
        lengths[i] = ends[-1] + 1 if len(ends) else row_len * learned.any()
    return Pieces(starts[lengths > 0], lengths[lengths > 0], len(too_long))


@dataclass(frozen=True)
class PackedRows:
    """The pieces of each row: row r holds pieces[order[bounds[r] : bounds[r + 1]]]."""

    pieces: Pieces
    order: np.ndarray
    bounds: np.ndarray
    row_len: int
    max_seq_len: int  # no piece is longer

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def positions(self) -> int:
        """Positions that hold a real token."""
        return int(self.pieces.lengths.sum())

    @property
    def density(self) -> float:
        """Share of positions that hold a real token."""
        return self.positions / max(1, len(self) * self.row_len)


def pack(pieces: Pieces, row_len: int, seed: int, max_seq_len: int | None = None) -> PackedRows:
    """Best-fit decreasing (arXiv:2404.10830): each piece, longest first, goes where it leaves the least space."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(pieces.lengths))
    longest_first = shuffled[np.argsort(-pieces.lengths[shuffled], kind="stable")]  # equal lengths meet at random
    by_space: list[list[int]] = [[] for _ in range(row_len + 1)]  # rows, by the space that is left in them
    spaces = 0  # bit s: some row has s positions left
    row_of, rows = np.empty(len(longest_first), np.int64), 0
    for i, length in enumerate(pieces.lengths[longest_first].tolist()):
        if enough := spaces >> length:
            space = length + (enough & -enough).bit_length() - 1  # the lowest bit: the tightest fit
            row_of[i] = row = by_space[space].pop()
            spaces ^= 0 if by_space[space] else 1 << space
        else:
            space, row_of[i], row, rows = row_len, rows, rows, rows + 1
        by_space[space - length].append(row)
        spaces |= 1 << (space - length)
    by_row = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[by_row], np.arange(rows + 1))
    return PackedRows(pieces, longest_first[by_row], bounds, row_len, max_seq_len or row_len)


def pack_dense(pieces: Pieces, max_seq_len: int, batch_size: int, seed: int, density: float = 0.98) -> PackedRows:
    """Rows of `max_seq_len`, or of the smallest multiple that divides `batch_size` rows and is dense enough.

    Two conversations of 513 to 1,024 tokens never share a row of 1,024, which leaves a quarter of it empty; eight such
    rows in a line hold ten or eleven. A batch holds as many positions either way, and a document sees only itself.
    """
    for multiple in (m for m in range(1, batch_size + 1) if batch_size % m == 0):
        rows = pack(pieces, multiple * max_seq_len, seed, max_seq_len)
        if rows.density >= density:
            break
    return rows


class Batch(NamedTuple):
    """One micro-batch of B rows of T positions; what is not filled has class 0."""

    inputs: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64
    classes: Tensor  # (B, T) uint8, the loss class of each label
    documents: Tensor  # (N + 1,) int32, first positions in the flattened rows, padded with B*T (model.attention)

    def to(self, device: torch.device) -> "Batch":
        """On the GPU; this program does not wait for the copy."""
        if device.type != "cuda":
            return Batch(*(tensor.to(device) for tensor in self))
        return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))


class Batches:
    """Step -> micro-batches. No state: a resumed run and any number of ranks read the same rows in the same step.

    Each epoch is a permutation drawn from (seed, epoch); a step takes the next `rows_per_step` of it, the last step of
    an epoch what is left. Micro-batch i gives rank r the rows (i * world + r) * batch_size and following.
    """

    def __init__(self, cache: TokenCache, rows: PackedRows, *, batch_size: int, rows_per_step: int, seed: int | None,
                 rank: int = 0, world: int = 1):  # fmt: skip
        if len(rows) == 0:
            raise ValueError("no rows: every document was held out or cut away; more data or a smaller --val_fraction")
        if rows_per_step % (batch_size * world):
            raise ValueError(f"{rows_per_step} rows a step do not divide into {world} ranks x {batch_size} rows")
        self.cache, self.rows, self.seed = cache, rows, seed
        self.batch_size, self.rows_per_step = batch_size, rows_per_step
        self.rank, self.world = rank, world
        self.steps_per_epoch = -(-len(rows) // rows_per_step)
        per_row = np.diff(rows.bounds)
        # The unfilled end of a row counts as documents, too, of at most max_seq_len positions.
        unfilled = batch_size * -(-rows.row_len // rows.max_seq_len)
        self.table_size = 1 + int(np.sort(per_row)[-batch_size:].sum()) + unfilled
        self._epoch, self._permutation = None, None

    def row_numbers(self, step: int) -> np.ndarray:
        """The rows of a step, of all ranks, in order. Without a seed: file order."""
        epoch, step = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed or 0, epoch]))
            everything = np.arange(len(self.rows))
            self._permutation = everything if self.seed is None else generator.permutation(everything)
            self._epoch = epoch
        return self._permutation[step * self.rows_per_step : (step + 1) * self.rows_per_step]

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches. Every rank gets as many, the last ones filled up with empty rows."""
        numbers, together = self.row_numbers(step), self.batch_size * self.world
        firsts = range(self.rank * self.batch_size, -(-len(numbers) // together) * together, together)
        return [self._batch(numbers[first : first + self.batch_size]) for first in firsts]

    def _batch(self, numbers: np.ndarray) -> Batch:
        shape = self.batch_size, self.rows.row_len
        ids, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        classes = np.full(shape, NO_LOSS, np.uint8)
        begins = []
        pieces, order, bounds = self.rows.pieces, self.rows.order, self.rows.bounds
        for row in range(self.batch_size):
            at = 0
            for piece in order[bounds[numbers[row]] : bounds[numbers[row] + 1]] if row < len(numbers) else ():
                start, length = pieces.starts[piece], pieces.lengths[piece]
                where = slice(at, at + length)
                tokens = self.cache.ids[start : start + length + 1]
                ids[row, where], labels[row, where] = tokens[:-1], tokens[1:]
                classes[row, where] = self.cache.classes[start + 1 : start + length + 1]
                begins.append(row * shape[1] + at)
                at += length
            begins += range(row * shape[1] + at, (row + 1) * shape[1], self.rows.max_seq_len)
        documents = np.full(self.table_size, ids.size, np.int32)
        documents[: len(begins)] = begins
        return Batch(*map(torch.from_numpy, (ids, labels, classes, documents)))


@dataclass(frozen=True)
class StageData:
    """What a stage reads: its token cache, packed rows to train on and to validate with."""

    cache: TokenCache
    training: PackedRows
    validation: PackedRows
    prompt: list[int]  # the beginning of a held-out document: what a run is asked to continue now and then

    @property
    def multiple(self) -> int:
        """Rows of max_seq_len positions that were put in a line (pack_dense): as much fewer make a batch."""
        return self.training.row_len // self.training.max_seq_len

    def describe(self) -> str:
        rows = self.training
        cut = f", {rows.pieces.cut:,} conversations shortened" if rows.pieces.cut else ""
        length = f"{self.multiple} x {rows.max_seq_len:,}" if self.multiple > 1 else f"{rows.max_seq_len:,}"
        return (
            f"{rows.positions:,} tokens in {len(rows):,} rows of {length} "
            f"({rows.density:.1%} of the positions are real tokens{cut}); "
            f"held out: {self.validation.positions:,} tokens in {len(self.validation):,} rows"
        )


def prepare(
    cache: TokenCache, fit: Callable[..., Pieces], *, max_seq_len: int, batch_size: int, val_fraction: float, seed: int
) -> StageData:
    """Split off the held-out documents and pack both parts; `fit` is split_documents or cut_conversations.

    `batch_size` is how many rows of `max_seq_len` may be put in a line to fill them well (1: none).
    """
    training, validation = cache.split(val_fraction)
    prompt = []
    if len(validation):
        begin, end = cache.offsets[validation[0]], cache.offsets[validation[0] + 1]
        learned = np.flatnonzero(cache.classes[begin:end] != NO_LOSS)
        prompt = cache.ids[begin : begin + max(16, learned[0])][: end - begin - 1].tolist()
    rows = pack_dense(fit(cache, training, max_seq_len), max_seq_len, batch_size, seed)
    held_out = pack(fit(cache, validation, max_seq_len), rows.row_len, seed, max_seq_len)
    return StageData(cache, rows, held_out, prompt)


def prefetch(make: Callable[[int], tuple], steps: range) -> Iterator[tuple]:
    """(*make(step), seconds waited) for every step, each made by a thread while the one before it is trained on."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for step in steps:
            ready = coming or thread.submit(make, step)
            coming = thread.submit(make, step + 1) if step + 1 in steps else None
            began = time.perf_counter()
            made = ready.result()
            yield *made, time.perf_counter() - began
