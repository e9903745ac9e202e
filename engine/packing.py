"""Packed rows of several documents, and batches as a pure function of (seed, step).

Every label of a batch carries its loss weight, looked up in the recipe's table by the label's class (dataset.py).

A document of n tokens has n - 1 predictions, so that is what it takes of a row: inputs and labels are cut from it
separately, and no position is spent on predicting the next document. Row length 6, documents <s>abc</s>, <s>d</s>:

    inputs   <s> a   b   c   | <s> d            The labels are shifted here and nowhere else. The documents of
    labels    a  b   c  </s> |  d  </s>         a row do not see each other in attention (model.attention).

A longer document is split into row-long segments; every prediction is still made exactly once.

Shapes: P segments, R packed rows, B rows of a micro-batch, T positions of a row, N documents of a micro-batch
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dataset import NO_LOSS, begins_in_text


class Documents(Protocol):
    """The part of a token cache that packing reads: document d is ids[offsets[d] : offsets[d + 1]]."""

    ids: np.ndarray  # (tokens,) uint16
    classes: np.ndarray  # (tokens,) uint8, the label class of every token
    offsets: np.ndarray  # (documents + 1,) int64
    meta: dict  # holds "end_id", the id of </s>


class Segments(NamedTuple):
    """The parts of documents that fill rows: predictions `starts[i]` to `starts[i] + lengths[i]` of the token cache."""

    starts: np.ndarray  # (P,) int64, index of the first input token; its label is the next one
    lengths: np.ndarray  # (P,) int64, at least 1 and at most the row length
    # Conversations that lost last turns, that end inside an answer, that were dropped.
    truncated: tuple[int, int, int] = (0, 0, 0)


LOST_TURNS, CUT_ANSWER, DROPPED = range(3)


def split_documents(cache: Documents, documents: np.ndarray, row_len: int) -> Segments:
    """Split documents into segments of at most `row_len` predictions: every prediction is kept.

    Args:
        cache: The token cache.
        documents: Document numbers, (n,) int64.
        row_len: Longest segment in tokens.
    """
    starts, lengths = cache.offsets[documents], np.diff(cache.offsets)[documents] - 1
    num_parts = -(-lengths // row_len)
    owner = np.repeat(np.arange(len(documents)), num_parts)
    part = np.arange(len(owner)) - np.repeat(num_parts.cumsum() - num_parts, num_parts)
    return Segments(starts[owner] + part * row_len, np.minimum(lengths[owner] - part * row_len, row_len))


def truncate_conversations(cache: Documents, documents: np.ndarray, row_len: int) -> Segments:
    """Make one segment of each conversation, without the last turns of one that is too long; split texts next to them.

    It has lost turns where one of its answers is gone: a question or a line break behind the last one teaches nothing.
    Only if no whole answer fits, its beginning is kept. The </s> of an answer is the one special token that is trained
    on, and no text can spell it: answers end where the class is not NO_LOSS and the id is </s>. Conversations without a
    trained token in what fits are dropped.

    Args:
        cache: The token cache.
        documents: Document numbers, (n,) int64.
        row_len: Longest segment in tokens.
    """
    truncated = [0, 0, 0]
    starts, lengths = cache.offsets[documents].copy(), np.diff(cache.offsets)[documents] - 1
    is_split = lengths > row_len
    is_split[is_split] = begins_in_text(cache.classes, starts[is_split])
    parts = split_documents(cache, documents[is_split], row_len)
    starts, lengths = starts[~is_split], lengths[~is_split]
    end_id = cache.meta["end_id"]
    for i in np.flatnonzero(lengths > row_len):
        labels = slice(starts[i] + 1, starts[i] + lengths[i] + 1)
        has_loss = cache.classes[labels] != NO_LOSS
        ends = np.flatnonzero((has_loss & (cache.ids[labels] == end_id))[:row_len])
        if len(ends):
            lengths[i], reason = ends[-1] + 1, LOST_TURNS
        elif has_loss[:row_len].any():
            lengths[i], reason = row_len, CUT_ANSWER
        else:
            lengths[i], reason = 0, DROPPED
        truncated[reason] += bool(has_loss[lengths[i] :].any())
    starts = np.concatenate([starts[lengths > 0], parts.starts])
    lengths = np.concatenate([lengths[lengths > 0], parts.lengths])
    return Segments(starts, lengths, (truncated[0], truncated[1], truncated[2]))


@dataclass(frozen=True)
class PackedRows:
    """The segments of each row: row r holds segments order[bounds[r] : bounds[r + 1]].

    Args:
        segments: All segments.
        order: Segment numbers, row after row, (P,) int64.
        bounds: First index into `order` of each row, (R + 1,) int64.
        row_len: Positions of a row.
        max_seq_len: Longest segment in tokens.
        parts: First row of each part that was packed alone, and the number of rows, (parts + 1,) int64.
    """

    segments: Segments
    order: np.ndarray
    bounds: np.ndarray
    row_len: int
    max_seq_len: int
    parts: np.ndarray

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
        """Share of positions that hold a real token."""
        return self.positions / max(1, len(self) * self.row_len)


def pack(
    segments: Segments, row_len: int, seed: int, max_seq_len: int | None = None, borders: Sequence[int] = ()
) -> PackedRows:
    """Pack segments into rows by best-fit decreasing (arXiv:2404.10830).

    Each segment, longest first, is placed where it leaves the least space.

    Args:
        segments: Segments to place; every length is between 1 and `row_len`.
        row_len: Length of a row in tokens.
        seed: Shuffles segments of equal length, so that neighbors in a row are random.
        max_seq_len: Longest segment in tokens (default: `row_len`).
        borders: Indices of tokens in the cache that no row crosses: segments before and after are packed apart.
    """
    part = np.searchsorted(borders, segments.starts, side="right")  # (P,)
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(segments.lengths))
    # By part, longest first; equal lengths meet at random.
    in_order = shuffled[np.lexsort((-segments.lengths[shuffled], part[shuffled]))]
    ends = np.bincount(part, minlength=len(borders) + 1).cumsum()
    row_of, parts = [], [0]
    for lengths in np.split(segments.lengths[in_order], ends[:-1]):
        rows = best_fit(lengths, row_len)
        row_of.append(rows + parts[-1])
        parts.append(parts[-1] + rows.max(initial=-1) + 1)
    row_of = np.concatenate(row_of)
    by_row = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[by_row], np.arange(parts[-1] + 1))
    return PackedRows(segments, in_order[by_row], bounds, row_len, max_seq_len or row_len, np.array(parts))


def best_fit(lengths: np.ndarray, row_len: int) -> np.ndarray:
    """Place each length, in order, in the row where it leaves the least space, or in a new one.

    Args:
        lengths: Tokens of each segment, (n,) int64.
        row_len: Length of a row in tokens.
    Returns:
        The row of each, (n,) int64.
    """
    rows_by_space: list[list[int]] = [[] for _ in range(row_len + 1)]
    open_spaces = 0  # bit s is set if some row has s positions left
    row_of, num_rows = np.empty(len(lengths), np.int64), 0
    for i, length in enumerate(lengths.tolist()):
        fitting = open_spaces >> length  # the rows with at least `length` positions left
        if fitting:
            lowest_bit = (fitting & -fitting).bit_length() - 1
            space = length + lowest_bit  # the tightest of them
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                open_spaces &= ~(1 << space)
        else:
            space, row = row_len, num_rows
            num_rows += 1
        row_of[i] = row
        rows_by_space[space - length].append(row)
        open_spaces |= 1 << (space - length)
    return row_of


def pack_dense(
    segments: Segments,
    max_seq_len: int,
    max_join: int,
    seed: int,
    fill_ratio: float = 0.98,
    borders: Sequence[int] = (),
) -> PackedRows:
    """Pack into rows of `max_seq_len`, or of k times that length, k the smallest that fills them well enough.

    Two conversations of 513 to 1,024 tokens never share a row of 1,024, which leaves a quarter of it empty; a row of
    eight times that length holds ten or eleven. A document still sees only itself.

    Args:
        segments: Segments to place.
        max_seq_len: Longest segment in tokens.
        max_join: Rows of a micro-batch; k divides it, which then has k times fewer rows and as many positions.
        seed: As in `pack`.
        fill_ratio: Share of real tokens that is good enough.
        borders: As in `pack`.
    """
    rows = pack(segments, max_seq_len, seed, borders=borders)
    for join_factor in range(2, max_join + 1):
        if rows.fill_ratio >= fill_ratio:
            break
        if max_join % join_factor == 0:
            rows = pack(segments, join_factor * max_seq_len, seed, max_seq_len, borders)
    return rows


class Batch(NamedTuple):
    """One micro-batch; an empty position has class NO_LOSS and loss weight 0."""

    inputs: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64
    classes: Tensor  # (B, T) uint8, the class of each label
    loss_weights: Tensor  # (B, T) float32, multiplied with each label's cross-entropy
    cu_seqlens: Tensor  # (N + 1,) int32, first positions in the flattened rows, then B*T (model.attention)

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; the program does not wait for a copy to a GPU."""
        is_cuda = device.type == "cuda"
        tensors = [tensor.pin_memory() for tensor in self] if is_cuda else list(self)
        moved = Batch(*(tensor.to(device, non_blocking=is_cuda) for tensor in tensors))
        torch._dynamo.maybe_mark_dynamic(moved.cu_seqlens, 0)  # compiled code is made once for any number of documents
        return moved


class Source(Protocol):
    """Step -> micro-batches of one process. All that the loop knows of what it trains on.

    A step must be a pure function of its number and of the arguments the source was made with: a resumed run asks for
    the same steps again, and each of several processes for its own part.

    Attributes:
        steps_per_epoch: Optimizer steps in which every row is read once.
        prefetchable: Whether step n + 1 may be made in a thread while step n is trained on; false if it depends on the
            weights.
    """

    steps_per_epoch: int
    prefetchable: bool

    def step(self, step: int) -> list[Batch]:
        """Return the micro-batches; every process gets as many."""
        ...

    def positions(self, step: int) -> int:
        """Return the number of real tokens that this process reads in a step."""
        ...


@dataclass(frozen=True)
class Sources:
    """The data of a stage, to train on and to validate with.

    Args:
        make_training: Makes a Source of batch_size, rows_per_step, seed, rank and world_size, all by keyword: rows of a
            micro-batch, rows of a step over all processes, random seed, number of this process, number of processes.
        make_validation: The same for held-out data, read in file order (seed None): {prefix of metrics: {file: ...}},
            "val" of all but "val_text", texts next to conversations. Several files have metrics of their own, too.
        resume_key: What decides the batches, as plain values: a run is resumed only with an equal one.
        prompt: Ids of the beginning of a held-out document, continued in the log.
        description: Lines about the data, printed before the first step.
        trained_hashes: Returns the hashes of the rows that training draws from, (n,) uint64; None: they are not known.
    """

    make_training: Callable[..., Source]
    make_validation: Mapping[str, Mapping[str, Callable[..., Source]]] = field(default_factory=dict)
    resume_key: Mapping[str, Any] = field(default_factory=dict)
    prompt: list[int] = field(default_factory=list)
    description: str = ""
    trained_hashes: Callable[[], np.ndarray] | None = None


def rows_per_epoch(rows: PackedRows, epochs: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return how many rows of each part an epoch reads that reads it so often, (parts,) int64."""
    return np.rint(np.diff(rows.parts) * np.asarray(epochs)).astype(np.int64)


class Batches:
    """The Source of packed rows. No state: a resumed run and any number of ranks read the same rows in the same step.

    Each epoch is a permutation drawn from (seed, epoch); a step takes the next `rows_per_step` of it, the last step of
    an epoch the rest. Micro-batch i gives rank r the rows (i * world_size + r) * batch_size and following.

    An epoch reads each part of the rows as often as `epochs` says. The part is a circle, in an order drawn from the
    seed, and an epoch begins where the one before it ended: no row is read again before all others of the part were.

    Args:
        cache: The token cache.
        rows: Rows packed from it.
        loss_weights: {label class: loss weight}; 0 for NO_LOSS, the class of empty positions.
        batch_size: Rows of max_seq_len in a micro-batch; a joined row (pack_dense) counts as several.
        rows_per_step: The same of a step, over all ranks.
        seed: None: file order.
        rank, world_size: Number of this process, number of processes.
        epochs: How often an epoch reads each part of the rows, or all of them.
    Raises:
        ValueError: No rows, rows that do not divide, or a loss weight for empty positions.
    """

    prefetchable = True

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
        epochs: Sequence[float] | np.ndarray = (1.0,),
    ):
        self.rows_per_epoch = rows_per_epoch(rows, epochs)
        if not self.rows_per_epoch.any():
            raise ValueError("no rows: all held out or cut away; more data, less --val_fraction or more --max_seq_len")
        if rows_per_step % (batch_size * world_size):
            raise ValueError(f"{rows_per_step} rows a step do not divide into {world_size} ranks x {batch_size} rows")
        if loss_weights[NO_LOSS] != 0:
            raise ValueError(
                f"loss_weights[NO_LOSS]={loss_weights[NO_LOSS]} must be 0, as empty positions have it, too"
            )
        self.cache = cache
        self.rows = rows
        self.seed = seed
        self.loss_weights = np.array(
            [loss_weights[label_class] for label_class in range(len(loss_weights))], np.float32
        )
        self.joined_batch_size = batch_size // rows.join_factor
        self.joined_rows_per_step = rows_per_step // rows.join_factor
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = math.ceil(self.rows_per_epoch.sum() / self.joined_rows_per_step)
        self.num_tokens = np.add.reduceat(rows.segments.lengths[rows.order], rows.bounds[:-1])  # (R,) real ones in each
        # The place of each row in its circle. Other random numbers than the order of an epoch and of packing has.
        self._places = []
        for part, size in enumerate(np.diff(rows.parts)):
            generator = np.random.Generator(np.random.Philox(key=[seed or 0, part]).jumped())
            self._places.append(generator.permutation(size))
        self._epoch, self._numbers = None, np.arange(0)

    def row_numbers(self, step: int) -> np.ndarray:
        """Return the rows of a step, of all ranks, in order: (rows_per_step,) int64, fewer at the end of an epoch."""
        epoch, step = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            times = []  # that the epoch reads each row
            for place, count in zip(self._places, self.rows_per_epoch, strict=True):
                before, after = ((number * count - place - 1) // len(place) for number in (epoch, epoch + 1))
                times.append(after - before)
            numbers = np.repeat(np.arange(len(self.rows)), np.concatenate(times))
            if self.seed is not None:
                numbers = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(numbers)
            self._epoch, self._numbers = epoch, numbers
        return self._numbers[step * self.joined_rows_per_step : (step + 1) * self.joined_rows_per_step]

    def positions(self, step: int) -> int:
        """Count the real tokens that this rank reads in a step: ids cannot tell, since 0 may be an ordinary one."""
        numbers = self.row_numbers(step)
        is_mine = np.arange(len(numbers)) // self.joined_batch_size % self.world_size == self.rank
        return int(self.num_tokens[numbers[is_mine]].sum())

    def step(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches. Every rank gets as many, the last ones filled up with empty rows."""
        numbers = self.row_numbers(step)
        rows_of_all_ranks = self.joined_batch_size * self.world_size
        end = math.ceil(len(numbers) / rows_of_all_ranks) * rows_of_all_ranks
        starts = range(self.rank * self.joined_batch_size, end, rows_of_all_ranks)
        return [self._batch(numbers[start : start + self.joined_batch_size]) for start in starts]

    def _batch(self, numbers: np.ndarray) -> Batch:
        shape = self.joined_batch_size, self.rows.row_len
        ids, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        classes = np.full(shape, NO_LOSS, np.uint8)
        seq_starts: list[int] = []
        for row in range(self.joined_batch_size):
            offset = 0
            if row < len(numbers):
                for start, length in self._segments_of(numbers[row]):
                    where = slice(offset, offset + length)
                    tokens = self.cache.ids[start : start + length + 1]
                    ids[row, where], labels[row, where] = tokens[:-1], tokens[1:]
                    classes[row, where] = self.cache.classes[start + 1 : start + length + 1]
                    seq_starts.append(row * shape[1] + offset)
                    offset += length
            # Padding counts as documents of at most max_seq_len positions, the limit of varlen attention.
            seq_starts += range(row * shape[1] + offset, (row + 1) * shape[1], self.rows.max_seq_len)
        cu_seqlens = np.array([*seq_starts, ids.size], np.int32)
        return Batch(*map(torch.from_numpy, (ids, labels, classes, self.loss_weights[classes], cu_seqlens)))

    def _segments_of(self, row: int) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of a row's segments."""
        segments = self.rows.segments
        for number in self.rows.order[self.rows.bounds[row] : self.rows.bounds[row + 1]]:
            yield int(segments.starts[number]), int(segments.lengths[number])


def prefetch(make: Callable[[int], tuple], steps: range, ahead: bool = True) -> Iterator[tuple]:
    """Yield (*make(step), seconds waited) for every step.

    Args:
        make: Makes the content of a step.
        steps: The steps, in order.
        ahead: A thread makes each while the one before it is trained on; else each is made when it is asked for.
    """
    if not ahead:
        for step in steps:
            started = time.perf_counter()
            yield *make(step), time.perf_counter() - started
        return
    with ThreadPoolExecutor(1) as thread:
        coming: Future | None = None
        for step in steps:
            started = time.perf_counter()
            ready = coming or thread.submit(make, step)
            coming = thread.submit(make, step + 1) if step + 1 in steps else None
            content = ready.result()
            yield *content, time.perf_counter() - started
