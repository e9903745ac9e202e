"""Token F1: the word overlap of two texts, as in SQuAD (arXiv:1606.05250) where that is defined."""

import re
import unicodedata
from collections import Counter

_NUMBER_WORD = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\.?\w)")
_CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")


def _space_out(character: str) -> str:
    """Return a sign, an emoji or a Chinese character between spaces, and a space, or nothing, for punctuation."""
    category = unicodedata.category(character)
    if character.isascii() and category[0] in "PS":
        return ""
    if category in ("So", "Sm", "Sc") or _CHINESE.match(character):
        return f" {character} "
    return " " if category[0] == "P" else character


def _split_words(text: str) -> list[str]:
    """Split at spaces and punctuation; ASCII punctuation is deleted, as in SQuAD; signs and emoji are words."""
    return "".join(map(_space_out, text)).split()


def words(text: str) -> list[str]:
    """Split into words, Chinese characters and whole numbers (-1,234.5 is "-1234.5"), in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    result, end = [], 0
    for match in _NUMBER_WORD.finditer(text):
        result += [*_split_words(text[end : match.start()]), match[0].replace(",", "")]
        end = match.end()
    return result + _split_words(text[end:])


def token_f1(prediction: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall over `words`.

    It differs from SQuAD's F1 in four points: "a", "an" and "the" count, numbers are whole words, Chinese is compared
    by character, and punctuation and signs beyond ASCII are known.
    """
    left, right = words(prediction), words(reference)
    if not left or not right:
        return float(left == right)
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))
