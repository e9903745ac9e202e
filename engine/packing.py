"""Rows of a fixed length made of several documents, and batches as a pure function of (seed, step).

Every label of a batch carries its cost, looked up in the recipe's table by the label's class (dataset.py).

A document of n tokens has n - 1 predictions, so that is what it takes of a row: inputs and labels are cut from it
separately, and no position is spent on predicting the next document. Row length 6, documents <s>abc</s>, <s>d</s>:

    inputs   <s> a   b   c   | <s> d            The labels are shifted here and nowhere else. The documents of
    labels    a  b   c  </s> |  d  </s>         a row do not see each other in attention (model.attention).

A longer document is split into row-long parts; every prediction is still made exactly once.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dataset import NO_LOSS


class Documents(Protocol):
    """What packing needs of the token cache: document d is ids[offsets[d] : offsets[d + 1]]."""

    ids: np.ndarray
    classes: np.ndarray  # the class of every token
    offsets: np.ndarray
    meta: dict  # holds "end_id", the id of </s>


class Segments(NamedTuple):
    """What is put into rows: predictions `starts[i]` to `starts[i] + lengths[i]` of the token cache."""

    starts: np.ndarray  # (P,) int64, index of the first input token; its label is the next one
    lengths: np.ndarray  # (P,) int64, at least 1 and at most the row length
    cut: tuple[int, int, int] = (0, 0, 0)  # documents that lost last turns, that end inside an answer, that are dropped


def split_documents(cache: Documents, documents: np.ndarray, row_len: int) -> Segments:
    """All predictions of the documents, in parts of at most `row_len`: nothing is thrown away."""
    starts, lengths = cache.offsets[documents], np.diff(cache.offsets)[documents] - 1
    parts = -(-lengths // row_len)
    owner = np.repeat(np.arange(len(documents)), parts)
    part = np.arange(len(owner)) - np.repeat(parts.cumsum() - parts, parts)
    return Segments(starts[owner] + part * row_len, np.minimum(lengths[owner] - part * row_len, row_len))


def truncate_conversations(cache: Documents, documents: np.ndarray, row_len: int) -> Segments:
    """One piece a conversation; a longer one loses whole last turns, and its tail only if no answer would be left.

    The end mark of an answer is the one control token that is learned, and no text can forge it, so answers end where
    the class is not 0 and the id is </s>. Conversations without a learned token in what is left are dropped.
    """
    cut = [0, 0, 0]
    starts, lengths = cache.offsets[documents].copy(), np.diff(cache.offsets)[documents] - 1
    end_mark = cache.meta["end_id"]
    for i in np.flatnonzero(lengths > row_len):
        kept = slice(starts[i] + 1, starts[i] + row_len + 1)  # the labels that fit
        learned = cache.classes[kept] != NO_LOSS
        ends = np.flatnonzero(learned & (cache.ids[kept] == end_mark))
        lengths[i] = ends[-1] + 1 if len(ends) else row_len if learned.any() else 0
        cut[0 if len(ends) else 1 if learned.any() else 2] += 1
    return Segments(starts[lengths > 0], lengths[lengths > 0], (cut[0], cut[1], cut[2]))


@dataclass(frozen=True)
class PackedRows:
    """The pieces of each row: row r holds pieces[order[bounds[r] : bounds[r + 1]]]."""

    segments: Segments
    order: np.ndarray
    bounds: np.ndarray
    row_len: int
    max_seq_len: int  # no piece is longer

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def join_factor(self) -> int:
        """Rows of max_seq_len that make one row here (pack_dense)."""
        return self.row_len // self.max_seq_len

    @property
    def positions(self) -> int:
        """Positions that hold a real token."""
        return int(self.segments.lengths.sum())

    @property
    def fill_ratio(self) -> float:
        """The share of those."""
        return self.positions / max(1, len(self) * self.row_len)


def pack(segments: Segments, row_len: int, seed: int, max_seq_len: int | None = None) -> PackedRows:
    """Best-fit decreasing (arXiv:2404.10830): each piece, longest first, goes where it leaves the least space."""
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(segments.lengths))
    longest_first = shuffled[np.argsort(-segments.lengths[shuffled], kind="stable")]  # equal lengths meet at random
    rows_by_space: list[list[int]] = [[] for _ in range(row_len + 1)]
    open_spaces = 0  # bit s is set where some row has s positions left
    row_of, n_rows = np.empty(len(longest_first), np.int64), 0
    for i, length in enumerate(segments.lengths[longest_first].tolist()):
        fitting = open_spaces >> length  # the rows with at least `length` positions left
        if fitting:
            lowest_bit = (fitting & -fitting).bit_length() - 1
            space = length + lowest_bit  # the tightest of them
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                open_spaces &= ~(1 << space)
        else:
            space, row = row_len, n_rows
            n_rows += 1
        row_of[i] = row
        rows_by_space[space - length].append(row)
        open_spaces |= 1 << (space - length)
    by_row = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[by_row], np.arange(n_rows + 1))
    return PackedRows(segments, longest_first[by_row], bounds, row_len, max_seq_len or row_len)


def pack_dense(segments: Segments, max_seq_len: int, max_join: int, seed: int, fill_ratio: float = 0.98) -> PackedRows:
    """Rows of `max_seq_len`, or k of them joined into one longer row, k the smallest that is dense enough.

    Two conversations of 513 to 1,024 tokens never share a row of 1,024, which leaves a quarter of it empty; a row of
    eight times that length holds ten or eleven. k divides `most`, the rows of a micro-batch, which then has k times
    fewer rows and as many positions; a document still sees only itself.
    """
    rows = pack(segments, max_seq_len, seed)
    for join_factor in (k for k in range(2, max_join + 1) if max_join % k == 0):
        if rows.fill_ratio >= fill_ratio:
            break
        rows = pack(segments, join_factor * max_seq_len, seed, max_seq_len)
    return rows


class Batch(NamedTuple):
    """One micro-batch of B rows of T positions; a position that is not filled has class NO_LOSS and costs nothing."""

    inputs: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64
    classes: Tensor  # (B, T) uint8, the class of each label
    loss_weights: Tensor  # (B, T) float32, what each label's cross-entropy is multiplied with
    cu_seqlens: Tensor  # (N + 1,) int32, first positions in the flattened rows, then B*T (model.attention)

    def to(self, device: torch.device) -> "Batch":
        """On the GPU; this program does not wait for the copy."""
        pinned = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self)
        there = Batch(*(tensor.to(device, non_blocking=device.type == "cuda") for tensor in pinned))
        torch._dynamo.maybe_mark_dynamic(there.cu_seqlens, 0)  # compiled code is made once for any number of documents
        return there


class Batches:
    """Step -> micro-batches. No state: a resumed run and any number of ranks read the same rows in the same step.

    Each epoch is a permutation drawn from (seed, epoch); a step takes the next `rows_per_step` of it, the last step of
    an epoch what is left. Micro-batch i gives rank r the rows (i * world + r) * batch_size and following.

    `cost` is {class: cost} of a label; NO_LOSS, the class of empty positions, costs nothing. `batch_size` and
    `rows_per_step` count rows of max_seq_len, joined ones (pack_dense) as several. `seed` None: file order.
    """

    def __init__(
        self,
        cache: Documents,
        rows: PackedRows,
        loss_weights: Mapping[int, float],
        *,
        batch_size: int,
        rows_per_step: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(rows) == 0:
            raise ValueError("no rows: all held out or cut away; more data, less --val_fraction or more --max_seq_len")
        if rows_per_step % (batch_size * world_size):
            raise ValueError(f"{rows_per_step} rows a step do not divide into {world_size} ranks x {batch_size} rows")
        if loss_weights[NO_LOSS] != 0:
            raise ValueError(f"cost[NO_LOSS]={loss_weights[NO_LOSS]} must be 0: empty positions have this class, too")
        self.cache, self.rows, self.seed = cache, rows, seed
        self.loss_weights = np.array([loss_weights[number] for number in range(len(loss_weights))], np.float32)
        self.batch_size, self.rows_per_step = (
            batch_size // rows.join_factor,
            rows_per_step // rows.join_factor,
        )  # as joined
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = math.ceil(len(rows) / self.rows_per_step)
        self.filled = np.add.reduceat(
            rows.segments.lengths[rows.order], rows.bounds[:-1]
        )  # (rows,) real tokens in each
        self._epoch, self._permutation = None, np.arange(len(rows))

    @property
    def micro_batches(self) -> int:
        """Of each rank in a step."""
        return self.rows_per_step // (self.batch_size * self.world_size)

    def row_numbers(self, step: int) -> np.ndarray:
        """The rows of a step, of all ranks, in order."""
        epoch, step = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch and self.seed is not None:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(np.arange(len(self.rows)))
        return self._permutation[step * self.rows_per_step : (step + 1) * self.rows_per_step]

    def positions(self, step: int) -> int:
        """Real tokens this rank reads in a step: the ids cannot tell, since 0 may be an ordinary one."""
        numbers = self.row_numbers(step)
        return int(
            self.filled[numbers[np.arange(len(numbers)) // self.batch_size % self.world_size == self.rank]].sum()
        )

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches. Every rank gets as many, the last ones filled up with empty rows."""
        numbers, together = self.row_numbers(step), self.batch_size * self.world_size
        firsts = range(self.rank * self.batch_size, math.ceil(len(numbers) / together) * together, together)
        return [self._batch(numbers[first : first + self.batch_size]) for first in firsts]

    def _batch(self, numbers: np.ndarray) -> Batch:
        shape = self.batch_size, self.rows.row_len
        ids, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        classes = np.full(shape, NO_LOSS, np.uint8)
        begins = []
        for row in range(self.batch_size):
            at = 0
            for start, length in self._pieces_of(numbers[row]) if row < len(numbers) else ():
                where = slice(at, at + length)
                tokens = self.cache.ids[start : start + length + 1]
                ids[row, where], labels[row, where] = tokens[:-1], tokens[1:]
                classes[row, where] = self.cache.classes[start + 1 : start + length + 1]
                begins.append(row * shape[1] + at)
                at += length
            # The unfilled end of a row is documents, too, of at most max_seq_len positions.
            begins += range(row * shape[1] + at, (row + 1) * shape[1], self.rows.max_seq_len)
        cu_seqlens = np.array([*begins, ids.size], np.int32)
        return Batch(*map(torch.from_numpy, (ids, labels, classes, self.loss_weights[classes], cu_seqlens)))

    def _pieces_of(self, row: int) -> Iterator[tuple[int, int]]:
        """(start, length) of a row's pieces."""
        segments = self.rows.segments
        for piece in self.rows.order[self.rows.bounds[row] : self.rows.bounds[row + 1]]:
            yield int(segments.starts[piece]), int(segments.lengths[piece])


def prefetch(make: Callable[[int], tuple], steps: range) -> Iterator[tuple]:
    """(*make(step), seconds waited) for every step, each made by a thread while the one before it is trained on."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for step in steps:
            ready, began = coming or thread.submit(make, step), time.perf_counter()
            coming = thread.submit(make, step + 1) if step + 1 in steps else None
            made = ready.result()
            yield *made, time.perf_counter() - began
