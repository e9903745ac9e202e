r"""Judging an answer by its words: exact match, token F1, the form of a thought, and whether its answer is right.

Two answers are the same when they are equal after normalisation, name the same number (1,234.0 and $1234), or choose
the same letters ((B), "B: 7" and "The answer is B."). \boxed{...} stands for what is in it.
"""

import re
import unicodedata
from collections import Counter
from fractions import Fraction

_NO_TAG = r"((?:(?!</?(?:think|answer)>).)*)"
WELL_FORMED = re.compile(rf"\s*<think>{_NO_TAG}</think>\s*<answer>{_NO_TAG}</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_LEAD = re.compile(
    r"(?:the)?(?:final|correct)?answer(?:is:?|:)|(?:最终|正确)?(?:答案|结果)(?:[是为]:?|:)|[应故]?选:?(?=\(?[a-j])"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_WRAP = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}|\\[()\[\]!,;]|\$")
_NUMBER = re.compile(r"([-+−]?)[¥€£]?([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:/([0-9]+))?([^0-9]*)")
_LETTERS = re.compile(r"\(([a-j]+)\)(?![a-z0-9]).*|([a-j]+)(?:[.:,)、，].*)?", re.DOTALL)


def _unboxed(text: str) -> str:
    r"""What stands in the last \boxed{...}, braces inside it included, or the text as it is."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return text
    start, depth = start + len(r"\boxed{"), 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text


def normalised(text: str) -> str:
    """What two answers are compared by: no width, case, spaces, LaTeX wrapping, "the answer is" or closing stop."""
    text = _WRAP.sub(lambda match: match[1] or "", _FRACTION.sub(r"\1/\2", _unboxed(text)))
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!?;,")
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead and lead.end() < len(text) else text


def number(text: str) -> tuple[Fraction, str] | None:
    """The value and unit of a normalised text that is one number, else None."""
    match = _NUMBER.fullmatch(text) if len(text) <= 64 else None  # a stuck model may write thousands of digits
    if match is None or int(match[3] or 1) == 0:
        return None
    value = Fraction(match[2].replace(",", "")) / int(match[3] or 1)
    return -value if match[1] in "-−" and match[1] else value, match[4]


def letters(text: str) -> str | None:
    """The choice a normalised text begins with, alone or before its full text: "(b)", "b:7", "abd"."""
    match = _LETTERS.fullmatch(text)
    return match and (match[1] or match[2])


def same_answer(given: str, wanted: str) -> bool:
    """Whether two answers say the same. A unit may be left out, not changed; letters go before the text they name."""
    given, wanted = normalised(given), normalised(wanted)
    if given == wanted:
        return True
    if chosen := letters(wanted):
        return letters(given) == chosen
    ours, theirs = number(given), number(wanted)
    if ours is None or theirs is None:
        return False
    return ours[0] == theirs[0] and (ours[1] == theirs[1] or not ours[1] or not theirs[1])


def words(text: str) -> list[str]:
    """Words of scripts with spaces, single characters of Chinese; no case, no punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def token_f1(given: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over `words`, as in SQuAD (arXiv:1606.05250)."""
    ours, theirs = words(given), words(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def is_thought(reference: str) -> bool:
    """Whether a row teaches to think: its answer holds the tags."""
    return "<think>" in reference


def answer_key(reference: str) -> str:
    """By what references are counted as the same, for the share that the most frequent one would get."""
    answer = ANSWER.search(reference) if is_thought(reference) else None
    return normalised(answer[1]) if answer else reference.strip()


def judge(answer: str, reference: str) -> dict[str, float]:
    """The figures of one answer: form and correctness for a thought, else exact words and F1."""
    if not is_thought(reference):
        return {"exact": float(answer.strip() == reference.strip()), "f1": token_f1(answer, reference)}
    given, wanted = ANSWER.search(answer), ANSWER.search(reference)
    marks = {"well_formed": float(WELL_FORMED.fullmatch(answer) is not None)}
    if wanted:
        marks["correct"] = float(given is not None and same_answer(given[1], wanted[1]))
    return marks
