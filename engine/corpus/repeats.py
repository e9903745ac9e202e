"""Repeats: rows that are equal, or say nearly the same.

Two rows are near repeats if their sets of shingles (shingles.py) have a Jaccard similarity of 0.8 or more, and one of
them holds all that the other says: its units but for one in 300, and its numbers in their order. A text that was cut,
joined with another one, or written with other punctuation, width or characters is a repeat. Rows of one template, which
differ in a name or a number, are none. MinHash only proposes pairs; all are compared by their texts.

Grams of a held-out row are looked up in the text of every other row: 13 characters or 8 words in a row (GPT-3 took 8 to
13 words: arXiv:2005.14165, appendix C). Of rows of less than 50 characters, such as a "thank you", which may be part of
any text, shingles are: they only find texts that are nearly the same.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from engine.corpus.shingles import BANDS, SHINGLE, Units, chunks, make_shingles, read_units

MIN_SIMILARITY = 0.8
UNITS_PER_VARIANT = 300  # of so many units one may be another: traditional characters are not always told apart
MIN_PART = 50  # units: a shorter text without a number of the other is another clause or title, no part of it
CUT_BYTES = 4 * 20  # 20 letters next to a cut
REPRESENTATIVES = 4  # rows of a band that a further one is compared with: of 100,000 similar rows, not each with each
COMPARED_IN_MEMORY = 64  # texts

HELD_OUT_GRAM = (13, 8)  # units, where the first is a character and where it is a word
MIN_CONTAINED_CHARACTERS = 50
CONTAINED_SHARE = 0.5  # of a held-out row's grams: a row with more of them contains it
SIMILAR_SHARE = 0.75  # of a short held-out row's shingles: a row with more of them is compared with it
MAX_ROWS = 32  # held-out rows that a gram is looked up for
MAX_COMPARED = 8  # held-out rows that a row is compared with: those of which it holds most
FILTER_SIZE = 32  # places of the filter for each gram: of other grams it lets one in 32 pass


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
    of the rows makes no difference.

    Args:
        exact: held_out.row_hash of the rows, (rows,) uint64.
        bands: sign_many of their texts, (rows, BANDS) uint64.
        lengths: Of their texts, (rows,).
        text_of: Reads the text (`row_text`) of a row.
    """
    kept_row = _first_equal(exact, lengths)
    is_copy = kept_row != np.arange(len(exact))
    is_shared = np.zeros(len(exact), bool)
    for band in range(BANDS):
        is_shared |= _are_shared(bands[:, band])
    rows = np.flatnonzero(is_shared & ~is_copy)
    rows = rows[np.lexsort((exact[rows], -lengths[rows].astype(np.int64)))]
    _drop_near(
        rows,
        _number_buckets(bands, rows),
        lru_cache(COMPARED_IN_MEMORY)(lambda row: read_content(text_of(row))),
        kept_row,
    )
    return Repeats(kept_row[kept_row], is_copy)


def _first_equal(exact: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the longest, then first, row of those that are equal to each one, (rows,) int64."""
    kept_row = np.arange(len(exact))
    rows = np.flatnonzero(_are_shared(exact))
    order = rows[np.lexsort((-lengths[rows].astype(np.int64), exact[rows]))]
    hashes = exact[order]
    is_first = np.concatenate([np.ones(min(len(order), 1), bool), hashes[1:] != hashes[:-1]])
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


def _number_buckets(bands: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the number of the bucket of some rows in each band, 0 where they are alone; (n, BANDS) int32."""
    buckets = np.zeros((len(rows), BANDS), np.int32)
    next_number = 1
    for band in range(BANDS):
        is_shared = _are_shared(bands[rows, band])
        hashes, numbers = np.unique(bands[rows[is_shared], band], return_inverse=True)
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
    next_place = np.zeros(num_buckets, np.uint8)
    for place, row in enumerate(rows.tolist()):
        shared = buckets[place][buckets[place] > 0]
        places, votes = np.unique(representatives[shared], return_counts=True)
        for other in places[np.argsort(-votes, kind="stable")].tolist():
            if other >= 0 and are_near(content_of(row), content_of(rows[other])):
                kept_row[row] = rows[other]
                break
        else:
            representatives[shared, next_place[shared]] = place
            next_place[shared] = (next_place[shared] + 1) % REPRESENTATIVES


# ------------------------------------------------------------------------------------------------- held-out rows


class HeldOut:
    """An index of held-out rows."""

    def __init__(self, texts: Sequence[str]):
        """Index the texts of held-out rows (repeats.row_text), of a question with its answer."""
        self._texts = sorted({text.strip() for text in texts})
        self._digests = set(map(_digest, self._texts))
        self._is_long = np.array([len(text) >= MIN_CONTAINED_CHARACTERS for text in self._texts], bool)
        self._indices = [
            GramIndex(self._texts, self._is_long, HELD_OUT_GRAM, CONTAINED_SHARE),
            GramIndex(self._texts, ~self._is_long, SHINGLE, SIMILAR_SHARE),
        ]

    def reason(self, text: str) -> str:
        """Return why a row's text must not be learned: "exact", "near" or "contained"; empty if it may."""
        return self.reasons([text])[0]

    def reasons(self, texts: Sequence[str]) -> list[str]:
        """Return `reason` of many texts: faster than one by one."""
        reasons: list[str] = []
        for chunk in chunks(texts):
            similar_rows = defaultdict(list)
            units = read_units(chunk)
            for index in self._indices:
                for number, row in index.find(units):
                    similar_rows[number].append(row)
            reasons += [self._reason(text, similar_rows[number]) for number, text in enumerate(chunk)]
        return reasons

    def _reason(self, text: str, rows: list[int]) -> str:
        if _digest(text.strip()) in self._digests:
            return "exact"
        content = read_content(text) if rows else None
        if content and any(are_near(content, read_content(self._texts[row])) for row in rows[:MAX_COMPARED]):
            return "near"
        return "contained" if self._is_long[rows].any() else ""


class GramIndex:
    """Grams of some texts, to find texts that hold most of them.

    A gram is looked up for the first MAX_ROWS texts that hold it: templates are in too many. Candidates are the texts
    that may be held if all other grams were; they are counted in full.
    """

    def __init__(self, texts: Sequence[str], is_indexed: np.ndarray, sizes: tuple[int, int], share: float):
        """Index texts.

        Args:
            texts: All of them.
            is_indexed: Which of them to index, (texts,) bool.
            sizes: Units of a gram, as in make_shingles.
            share: Of a text's different grams; a text that is found holds more.
        """
        self.sizes = sizes
        self.filter = np.ones(1, bool)  # all pass
        parts, first = [(np.empty(0, np.uint64), np.empty(0, np.int64))], 0
        for chunk in chunks(texts):
            grams, numbers = self._grams(read_units(chunk))
            parts.append((grams, numbers + first))
            first += len(chunk)
        grams, numbers = map(np.concatenate, zip(*parts, strict=True))
        grams, numbers = grams[is_indexed[numbers]], numbers[is_indexed[numbers]]
        num_grams = np.bincount(numbers, minlength=len(texts))
        self.share = share
        self.grams_of = np.split(grams, np.cumsum(num_grams))
        order = np.argsort(grams, kind="stable")
        place = np.arange(len(grams)) - np.searchsorted(grams[order], grams[order])  # among the texts that hold a gram
        order = order[place < MAX_ROWS]
        self.grams, self.numbers = grams[order], numbers[order]
        self.least = share * num_grams - num_grams + np.bincount(self.numbers, minlength=len(texts))
        self.filter = np.zeros(1 << (FILTER_SIZE * len(grams)).bit_length(), bool)
        self.filter[self._places(grams)] = True

    def find(self, units: Units) -> Iterator[tuple[int, int]]:
        """Yield (number of a text, indexed text of which it holds most), from the largest share on.

        Args:
            units: Of the texts.
        """
        grams, numbers = self._grams(units)
        first, end = (np.searchsorted(self.grams, grams, side) for side in ("left", "right"))
        times = end - first
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        indexed = self.numbers[np.repeat(first, times) + within]
        keys, counts = np.unique(np.repeat(numbers, times) * len(self.least) + indexed, return_counts=True)
        texts, rows = np.divmod(keys, max(len(self.least), 1))
        held = []
        for place in np.flatnonzero(counts > self.least[rows]):
            text, row = int(texts[place]), int(rows[place])
            begin, end = np.searchsorted(numbers, [text, text + 1])
            share = np.isin(self.grams_of[row], grams[begin:end], assume_unique=True).mean()
            held.append((-share, text, row))
        yield from ((text, row) for share, text, row in sorted(held) if -share > self.share)

    def _grams(self, units: Units) -> tuple[np.ndarray, np.ndarray]:
        """Return the different grams of each text that pass the filter, and the numbers of the texts; (n,) each."""
        shingles = make_shingles(units, self.sizes)
        passes = np.flatnonzero(self.filter[self._places(shingles.hashes)])
        numbers = np.searchsorted(shingles.ends, passes, "right")
        order = np.lexsort((shingles.hashes[passes], numbers))
        grams, numbers = shingles.hashes[passes][order], numbers[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (grams[1:] != grams[:-1]) | (numbers[1:] != numbers[:-1])
        return grams[is_new], numbers[is_new]

    def _places(self, grams: np.ndarray) -> np.ndarray:
        return grams & np.uint64(len(self.filter) - 1)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
