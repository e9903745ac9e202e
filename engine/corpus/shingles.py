"""Shingles of texts as numbers, and their MinHash: texts that share most shingles say nearly the same.

A text is read as units: a character of a script without spaces between words, a symbol, or a word or number between
others. Case, width (NFKC), traditional or simplified Chinese, punctuation and white space make no difference. A shingle
is five units where the first is such a character, else three.

All is integer arithmetic with fixed constants, on Unicode as of 3.2: equal numbers on every machine and Python.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

MINIMA_PER_BAND = 6  # all equal: texts of similarity s share one of the bands with probability 1 - (1 - s^6)^16
BANDS = 16 + 1  # the last is of all shingles: texts that differ in punctuation or script alone find each other
MIN_CHARACTERS = 12  # a shorter text says something else as soon as one of its words is another
SHINGLE = (5, 3)  # units, where the first is a character and where it is a word
CHUNK_CHARACTERS = 1 << 17  # read at once: the arrays stay in the processor's cache

_CHARACTER = 1 << 31  # a flag next to a code point: a unit of its own
_NUMBER = 1 << 30  # a digit
_RARE = 1 << 29  # a text that holds it is normalized as a whole
_NUM_CODES = 0x110000
_IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2FA20))
_WITHOUT_SPACES = (
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x1000, 0x10A0),  # Burmese
    (0x1780, 0x1800),  # Khmer
    (0x2E80, 0x3130),  # kana
    (0x31F0, 0x3200),
    (0x3400, 0xA000),
    (0xF900, 0xFB00),
    (0x1F000, 0x20000),  # pictures, younger than Unicode 3.2
    (0x20000, 0x40000),
)
_WITH_FORMS = ((0, 0x3400), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1D000, 0x1D800), (0x2F800, 0x2FA20))
_IGNORED_SYMBOLS = "|~`^"
_CHINESE_NUMBERS = "〇零一二两三四五六七八九十百千万亿"
_AMBIGUOUS = ("著着", "瞭了")  # traditional and simplified: both are written in simplified texts, too


class Units(NamedTuple):
    """The units of some texts.

    Attributes:
        hashes: (units,) uint64.
        are_characters: Whether a unit is a character, not a word, (units,) bool.
        are_numbers: Whether a unit begins with a digit, (units,) bool.
        ends: Index after the last unit of each text, (texts,) int64.
        num_characters: Characters of each text that are not ignored, (texts,) int64.
        codes: Those characters, (characters,) uint32.
    """

    hashes: np.ndarray
    are_characters: np.ndarray
    are_numbers: np.ndarray
    ends: np.ndarray
    num_characters: np.ndarray
    codes: np.ndarray


class Shingles(NamedTuple):
    """The shingles of texts: `hashes` (shingles,) uint64, and the index after each text's, `ends` (texts,) int64."""

    hashes: np.ndarray
    ends: np.ndarray


def read_units(texts: Sequence[str]) -> Units:
    """Return the units of texts."""
    codes, ends = _read_codes(texts)
    is_letter = codes != 0
    is_word = is_letter & (codes < _CHARACTER)
    follows_word = np.concatenate([[False], is_word[:-1]])
    starts = np.flatnonzero(is_letter & ~(is_word & follows_word))
    letters = np.concatenate([[0], np.cumsum(is_letter)])[ends]
    unit_ends = np.searchsorted(starts, ends)
    first_codes = codes[starts]
    if not len(starts):
        hashes = np.empty(0, np.uint64)
    else:
        powers, inverses = _powers(1 << len(codes).bit_length())
        values = mix(codes.astype(np.uint64)) * powers[: len(codes)]
        hashes = mix(np.add.reduceat(values, starts) * inverses[starts])
    counts = np.diff(letters, prepend=0)
    are_numbers = (first_codes & _NUMBER) != 0
    return Units(hashes, first_codes >= _CHARACTER, are_numbers, unit_ends, counts, codes[is_letter])


def _read_codes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    table = _code_table()
    for is_last in (False, True):
        ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)  # each with the line break that ends it
        joined = "\n".join([*texts, ""])
        codes = table[np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)]
        rare = np.flatnonzero(codes & _RARE)
        if is_last or not len(rare):
            break
        texts = list(texts)
        for row in np.unique(np.searchsorted(ends, rare, "right")):
            texts[row] = unicodedata.ucd_3_2_0.normalize("NFKC", texts[row])
    return codes & ~np.uint32(_RARE), ends


def make_shingles(units: Units, sizes: tuple[int, int] = SHINGLE) -> Shingles:
    """Return hashes of all runs of units within a text.

    Args:
        units: Of some texts.
        sizes: Units in a run that begins with a character, and in one that begins with a word.
    """
    num_units = len(units.hashes)
    padded = np.concatenate([units.hashes, np.zeros(max(sizes), np.uint64)])
    sums = np.zeros((2, num_units), np.uint64)
    for position, factor in enumerate(_constants(max(sizes))):
        terms = padded[position : position + num_units] * factor
        for kind in (0, 1):
            if position < sizes[kind]:
                sums[kind] += terms
    lengths = np.where(units.are_characters, *sizes)
    text_ends = np.repeat(units.ends, np.diff(units.ends, prepend=0))
    fits = np.arange(num_units) + lengths <= text_ends
    hashes = np.where(units.are_characters, sums[0], sums[1])[fits]
    return Shingles(mix(hashes), np.concatenate([[0], np.cumsum(fits)])[units.ends])


def sign_many(texts: Sequence[str]) -> np.ndarray:
    """Return hashes of the bands of MinHash minima of each text, 0 where it is too short, (texts, BANDS) uint64."""
    return np.concatenate([np.empty((0, BANDS), np.uint64), *map(_sign_chunk, chunks(texts))])


def chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield texts in groups that are fast to handle at once."""
    begin = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= CHUNK_CHARACTERS or number == len(texts) - 1:
            yield texts[begin : number + 1]
            begin, size = number + 1, 0


def _sign_chunk(texts: Sequence[str]) -> np.ndarray:
    units = read_units(texts)
    shingles = make_shingles(units)
    counts = np.diff(shingles.ends, prepend=0)
    bands = np.zeros((len(texts), BANDS), np.uint64)
    signed = np.flatnonzero(counts)
    if not len(signed):
        return bands
    starts = (shingles.ends - counts)[signed]
    hashes = (shingles.hashes >> np.uint64(32)).astype(np.uint32)
    permuted = np.empty_like(hashes)
    num_minima = (BANDS - 1) * MINIMA_PER_BAND
    factors = _constants(2 * num_minima)
    for number in range(num_minima):
        np.multiply(hashes, np.uint32(factors[2 * number] >> np.uint64(32)) | np.uint32(1), out=permuted)
        np.bitwise_xor(permuted, np.uint32(factors[2 * number + 1] >> np.uint64(32)), out=permuted)
        minima = np.minimum.reduceat(permuted, starts)
        bands[signed, number // MINIMA_PER_BAND] += minima * factors[number]
    bands[signed, -1] = np.add.reduceat(shingles.hashes, starts)
    bands[signed] = mix(bands[signed])
    bands[units.num_characters < MIN_CHARACTERS] = 0
    return bands


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread each bit of hashes, (n,) uint64, over all 64, in place (the end of splitmix64)."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


@cache
def _constants(count: int) -> np.ndarray:
    return mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


@lru_cache(2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return powers of an odd number and of its inverse modulo 2^64, (count,) uint64 each."""
    base = 0x9E3779B97F4A7C15
    powers, inverses = (np.cumprod(np.full(count, factor, np.uint64)) for factor in (base, pow(base, -1, 1 << 64)))
    return powers, inverses


@cache
def _code_table() -> np.ndarray:
    """Return the letter that each code point is read as, with its flags, 0 if it is ignored; (0x110000,) uint32."""
    old = unicodedata.ucd_3_2_0
    letters = np.arange(_NUM_CODES, dtype=np.uint32)
    flags = np.zeros(_NUM_CODES, np.uint32)
    for first, end in _WITHOUT_SPACES:
        flags[first:end] |= _CHARACTER
    rare = []
    for first, end in _WITH_FORMS:
        for code in range(first, end):
            form = old.normalize("NFKC", chr(code)).lower()
            kept = [letter for letter in form if _is_letter(letter)]
            letters[code] = ord(kept[0]) if kept else 0
            if len(kept) > 1 or old.combining(chr(code)):
                rare.append(code)
            category = old.category(chr(code))
            if category[0] == "S":
                flags[code] |= _CHARACTER
            if category in ("Nd", "No"):
                flags[code] |= _NUMBER
    flags[[ord(character) for character in _CHINESE_NUMBERS]] |= _NUMBER
    letters = _simplified()[letters]
    table = letters | flags[letters]
    table[letters == 0] = 0
    table[rare] |= _RARE
    return table


def _is_letter(letter: str) -> bool:
    category = unicodedata.ucd_3_2_0.category(letter)
    if category[0] == "S":
        return category != "Sk" and letter not in _IGNORED_SYMBOLS
    return category[0] in "LMN" or category in ("Cn", "Co")


def _simplified() -> np.ndarray:
    """Return the simplified form of each code point, (0x110000,) uint32."""
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise ValueError("near repeats need opencc (traditional Chinese): pip install opencc") from error
    codes = np.concatenate([np.arange(*bounds) for bounds in _IDEOGRAPHS])
    simplified = OpenCC("hk2s").convert("\n".join(map(chr, codes))).split("\n")
    table = np.arange(_NUM_CODES, dtype=np.uint32)
    table[codes] = [ord(character) for character in simplified]
    for traditional, character in _AMBIGUOUS:
        table[ord(traditional)] = ord(character)
    return table
