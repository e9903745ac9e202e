"""How many words two texts share: token F1, as in SQuAD where that is defined."""

import re
import unicodedata
from collections import Counter

_CJK = "\u3400-\u9fff\uf900-\ufaff"
_NUMBER_WORD = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\.?\w)")
_SINGLE = re.compile(rf"[{_CJK}]")


def _spelt(text: str) -> str:
    """Text without its punctuation: in ASCII it is deleted, as SQuAD does, elsewhere it parts words; signs and emoji
    are words."""
    pieces = []
    for character in text:
        kind = unicodedata.category(character)
        if character.isascii() and kind[0] in "PS":
            continue
        single = kind in ("So", "Sm", "Sc") or _SINGLE.match(character)
        pieces.append(" " if kind[0] == "P" else f" {character} " if single else character)
    return "".join(pieces)


def words(text: str) -> list[str]:
    """Words of scripts with spaces, single characters of Chinese, numbers whole (-1,234.5 is "-1234.5"); no case."""
    text, found, end = unicodedata.normalize("NFKC", text).casefold(), [], 0
    for match in _NUMBER_WORD.finditer(text):
        found += [*_spelt(text[end : match.start()]).split(), match[0].replace(",", "")]
        end = match.end()
    return found + _spelt(text[end:]).split()


def token_f1(given: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over `words`.

    SQuAD's F1 (arXiv:1606.05250) but for four things: "a", "an" and "the" count, numbers are whole words, Chinese goes
    by character, and punctuation and signs beyond ASCII are known.
    """
    ours, theirs = words(given), words(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))
