"""Repeats: rows that are equal, or say nearly the same, and rows that say what a held-out row says.

Two rows are near repeats if their sets of shingles (shingles.py) have a Jaccard similarity of 0.8 or more, and one of
them holds all that the other says: its units but for one in 300, and all of its numbers. A text that was cut, joined
with another one, or written with other punctuation, width or characters is a repeat. Rows of one template, which differ
in a name or a number, are none. MinHash only proposes pairs; all are compared by their texts.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from engine.corpus.shingles import BANDS, chunks, make_shingles, read_units, sign_many

MIN_SIMILARITY = 0.8
UNITS_PER_VARIANT = 300  # of so many units one may be another: traditional characters are not always told apart
MIN_PART = 50  # units: a shorter text without a number of the other is another clause or title, no part of it
CUT_BYTES = 4 * 20  # 20 letters next to a cut
REPRESENTATIVES = 4  # rows of a band that a further one is compared with: of 100,000 similar rows, not each with each
COMPARED_IN_MEMORY = 64  # texts
MAX_HELD_OUT_ROWS = 32  # that a row is compared with: those that share most bands with it
HELD_OUT_GRAM = (13, 8)  # units, of characters and of words (GPT-3 took 8 to 13 words: arXiv:2005.14165, appendix C)
MIN_CONTAINED_CHARACTERS = 50  # a shorter held-out row, such as a "thank you", may be part of any text


class Repeats(NamedTuple):
    """Repeats among rows.

    Attributes:
        kept_row: For each row the one that is kept instead, or itself, (rows,) int64.
        exact: Whether a row is dropped because it is equal to another one, (rows,) bool.
    """

    kept_row: np.ndarray
    exact: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """Return whether each row is kept, (rows,) bool."""
        return self.kept_row == np.arange(len(self.kept_row))

    def clusters(self, most: int | None = None) -> list[np.ndarray]:
        """Return the `most` largest clusters (None: all), (rows,) each: the row that is kept, then the dropped ones."""
        dropped = np.flatnonzero(~self.keep)
        by_kept = dropped[np.argsort(self.kept_row[dropped], kind="stable")]
        kept, starts = np.unique(self.kept_row[by_kept], return_index=True)
        sizes = np.diff(starts, append=len(by_kept))
        largest = np.argsort(-sizes, kind="stable")[:most]
        return [np.array([kept[i], *by_kept[starts[i] : starts[i] + sizes[i]]]) for i in largest]


class Content(NamedTuple):
    """A text to compare.

    Attributes:
        shingles: Distinct ones, sorted, (shingles,) uint64.
        units: Distinct ones, sorted, (units,) uint64.
        counts: Of each unit, (units,).
        numbers: Hashes of those units that are numbers, in the order of the text.
        ends: The places in `units` of the first and the last one.
        letters: All that is not ignored.
    """

    shingles: np.ndarray
    units: np.ndarray
    counts: np.ndarray
    numbers: bytes
    ends: np.ndarray
    letters: bytes


def row_text(content: str | list[dict]) -> str:
    """Return the words of a row: a text, or the turns without the system message.

    Args:
        content: As `read` of a dataset class returns it.
    """
    if isinstance(content, str):
        return content.strip()
    return "\n".join(message["content"].strip() for message in content if message["role"] != "system")


def read_content(text: str) -> Content:
    """Return what of a text is compared."""
    units = read_units([text])
    numbers = units.hashes[units.are_numbers].tobytes()
    hashes, counts = np.unique(units.hashes, return_counts=True)
    shingles = np.unique(make_shingles(units).hashes)
    ends = np.searchsorted(hashes, units.hashes[[0, -1]] if len(hashes) else [])
    return Content(shingles, hashes, counts, numbers, ends, units.codes.tobytes())


def similarity(content: Content, other: Content) -> float:
    """Return the Jaccard similarity of two texts' shingles."""
    common = len(np.intersect1d(content.shingles, other.shingles, assume_unique=True))
    return common / max(len(content.shingles) + len(other.shingles) - common, 1)


def are_near(content: Content, other: Content) -> bool:
    """Return whether two texts say nearly the same, and one all that the other says."""
    if similarity(content, other) < MIN_SIMILARITY:
        return False
    return _holds(content, other) or _holds(other, content)


def _holds(content: Content, part: Content) -> bool:
    """Return whether `content` holds the numbers of `part` in their order, and all but very few of its units.

    A cut may go through the first and the last unit, if a word: then the letters next to it are there.
    """
    if part.numbers not in content.numbers:
        return False
    if part.counts.sum() < MIN_PART and part.numbers != content.numbers:
        return False
    at = np.searchsorted(content.units, part.units).clip(max=len(content.units) - 1)
    counts = np.where(content.units[at] == part.units, content.counts[at], 0)
    missing = (part.counts - counts).clip(min=0)
    for place, letters in zip(part.ends, (part.letters[:CUT_BYTES], part.letters[-CUT_BYTES:]), strict=True):
        if missing[place] and letters in content.letters:
            missing[place] -= 1
    return missing.sum() <= part.counts.sum() // UNITS_PER_VARIANT


def find_repeats(exact: np.ndarray, bands: np.ndarray, lengths: np.ndarray, text_of: Callable[[int], str]) -> Repeats:
    """Find the rows that repeat another one; of equal and of similar ones the longest is kept.

    From the longest row to the shortest (equal lengths: by hash), each is compared with kept rows that share a band
    with it, of every band the last ones. So a row is dropped only for a kept one that is similar to it, and the order
    of the rows makes no difference. Texts and conversations teach different things: call it for each.

    Args:
        exact: held_out.row_hash of the rows, (rows,) uint64.
        bands: sign_many of their texts, (rows, BANDS) uint64.
        lengths: Of their texts, (rows,).
        text_of: Reads the text (`row_text`) of a row.
    """
    kept_row = _first_equal(exact, lengths)
    is_copy = kept_row != np.arange(len(exact))
    rows = np.flatnonzero(~is_copy)
    is_shared = np.zeros(len(rows), bool)
    for band in range(BANDS):
        is_shared |= _are_shared(bands[rows, band])
    rows = rows[is_shared]
    rows = rows[np.lexsort((exact[rows], -lengths[rows].astype(np.int64)))]
    _drop_near(
        rows,
        _number_buckets(bands[rows]),
        lru_cache(COMPARED_IN_MEMORY)(lambda row: read_content(text_of(row))),
        kept_row,
    )
    return Repeats(kept_row[kept_row], is_copy)


def _first_equal(exact: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the longest, then first, row of those that are equal to each one, (rows,) int64."""
    order = np.lexsort((-lengths.astype(np.int64), exact))
    hashes = exact[order]
    is_first = np.ones(len(exact), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    kept_row = np.empty(len(exact), np.int64)
    kept_row[order] = order[is_first][np.cumsum(is_first) - 1]
    return kept_row


def _are_shared(hashes: np.ndarray) -> np.ndarray:
    """Return whether each hash is there again and is not 0, (n,) bool."""
    order = np.argsort(hashes)
    in_order = hashes[order]
    repeats = np.zeros(len(hashes) + 1, bool)
    repeats[1:-1] = in_order[1:] == in_order[:-1]
    is_shared = np.empty(len(hashes), bool)
    is_shared[order] = repeats[1:] | repeats[:-1]
    return is_shared & (hashes != 0)


def _number_buckets(bands: np.ndarray) -> np.ndarray:
    """Return the number of each row's bucket in each band, 0 where it is alone; (rows, BANDS) int32."""
    buckets = np.zeros(bands.shape, np.int32)
    next_number = 1
    for band in range(BANDS):
        is_shared = _are_shared(bands[:, band])
        hashes, numbers = np.unique(bands[is_shared, band], return_inverse=True)
        buckets[is_shared, band] = numbers + next_number
        next_number += len(hashes)
    return buckets


def _drop_near(rows: np.ndarray, buckets: np.ndarray, content_of: Callable, kept_row: np.ndarray) -> None:
    """Set `kept_row` of near repeats.

    Args:
        rows: From the longest on, (n,).
        buckets: Of those rows, (n, BANDS).
        content_of: Returns the Content of a row.
        kept_row: (all rows,), changed.
    """
    num_buckets = buckets.max(initial=0) + 1
    representatives = np.full((num_buckets, REPRESENTATIVES), -1, np.int32)  # places in `rows`
    counts = np.zeros(num_buckets, np.int32)
    for place, row in enumerate(rows.tolist()):
        shared = buckets[place][buckets[place] > 0]
        places, votes = np.unique(representatives[shared], return_counts=True)
        for other in places[np.argsort(-votes, kind="stable")].tolist():
            if other >= 0 and are_near(content_of(row), content_of(rows[other])):
                kept_row[row] = rows[other]
                break
        else:
            representatives[shared, counts[shared] % REPRESENTATIVES] = place
            counts[shared] += 1


class HeldOut:
    """The held-out rows, whose words no row that is learned may hold."""

    def __init__(self, texts: Sequence[str]):
        """Index the texts (`row_text`) of held-out rows, of a question with its answer."""
        texts = sorted({text.strip() for text in texts})
        self._digests = {_digest(text) for text in texts}
        self._contents: dict[int, Content] = {}
        self._texts = texts
        self._rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, bands in enumerate(sign_many(texts).tolist()):
            for key in enumerate(bands):
                if key[1]:
                    self._rows_of[key].append(row)
        grams, rows = _distinct_grams(texts)
        is_long = np.array([len(text) >= MIN_CONTAINED_CHARACTERS for text in texts], bool)
        grams, rows = grams[is_long[rows]], rows[is_long[rows]]
        self._num_grams = np.bincount(rows, minlength=len(texts))
        order = np.argsort(grams, kind="stable")
        self._grams, self._gram_rows = grams[order], rows[order]

    def reason(self, text: str) -> str:
        """Return why a row's text must not be learned: "exact", "near" or "contained"; empty if it may."""
        return self.reasons([text])[0]

    def reasons(self, texts: Sequence[str]) -> list[str]:
        """Return `reason` of many texts: faster than one by one."""
        is_contained = self._find_contained(texts)
        reasons = []
        for text, bands, contained in zip(texts, sign_many(texts).tolist(), is_contained, strict=True):
            if _digest(text.strip()) in self._digests:
                reasons.append("exact")
            elif self._is_near(text, bands):
                reasons.append("near")
            else:
                reasons.append("contained" if contained else "")
        return reasons

    def _is_near(self, text: str, bands: list[int]) -> bool:
        votes = Counter(chain.from_iterable(self._rows_of.get(key, ()) for key in enumerate(bands)))
        if not votes:
            return False
        content = read_content(text)
        return any(are_near(content, self._content(row)) for row, _ in votes.most_common(MAX_HELD_OUT_ROWS))

    def _content(self, row: int) -> Content:
        if row not in self._contents:
            self._contents[row] = read_content(self._texts[row])
        return self._contents[row]

    def _find_contained(self, texts: Sequence[str]) -> np.ndarray:
        """Return whether each text holds most of a held-out row, (texts,) bool."""
        grams, numbers = _distinct_grams(texts)
        first, end = (np.searchsorted(self._grams, grams, side) for side in ("left", "right"))
        times = end - first
        offsets = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        held_out_rows = self._gram_rows[np.repeat(first, times) + offsets]
        pairs, counts = np.unique(np.repeat(numbers, times) * len(self._num_grams) + held_out_rows, return_counts=True)
        most = counts * 2 > self._num_grams[pairs % max(len(self._num_grams), 1)]
        is_contained = np.zeros(len(texts), bool)
        is_contained[pairs[most] // max(len(self._num_grams), 1)] = True
        return is_contained


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _distinct_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each distinct long gram of each text, (n,) uint64, and the numbers of the texts, (n,) int64."""
    all_hashes, all_numbers, num_texts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    for chunk in chunks(texts):
        grams = make_shingles(read_units(chunk), HELD_OUT_GRAM)
        numbers = np.repeat(np.arange(len(chunk)), np.diff(grams.ends, prepend=0))
        order = np.lexsort((grams.hashes, numbers))
        hashes, numbers = grams.hashes[order], numbers[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (hashes[1:] != hashes[:-1]) | (numbers[1:] != numbers[:-1])
        all_hashes.append(hashes[is_new])
        all_numbers.append(numbers[is_new] + num_texts)
        num_texts += len(chunk)
    return np.concatenate(all_hashes), np.concatenate(all_numbers)
