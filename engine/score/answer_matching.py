r"""Compare an answer with its reference: exact match, F1, format, and equality as numbers, letters or words.

The thought is removed first; the answer is the text inside <answer> after it, or without that tag all of it. Two
answers match if they are equal after normalization, are the same number in the same unit (1,234.0 and $1234; a unit
may be missing, not different), or choose the same letters ((B), "B: 7" and "The answer is B."). \boxed{...} is its
content. tests/score/answers_table.jsonl defines by 200 pairs what matches.
"""

import re
import unicodedata
from typing import NamedTuple

from engine.reasoning import WELL_FORMED, final_answer, tag_form
from engine.score.quantities import parse_quantity
from engine.score.token_f1 import token_f1


def has_thought(reference: str) -> bool:
    """Return whether a row teaches to think: its answer contains one of the tags."""
    return tag_form(reference) != "none"


def answer_key(reference: str) -> str:
    """Return the key that equal references share, for the share that the most frequent one would get."""
    return normalize_answer(final_answer(reference)) if has_thought(reference) else reference.strip()


def score_answer(answer: str, reference: str) -> dict[str, float]:
    """Return an answer's metrics: format and correctness if the reference has a thought, else exact match and F1.

    A verbatim copy of the reference scores 1 on every metric. Format is only scored if the reference is well-formed.
    """
    prediction = final_answer(answer)
    if not has_thought(reference):
        return {"exact_match": float(prediction.strip() == reference.strip()), "f1": token_f1(prediction, reference)}
    expected = final_answer(reference)
    correct = bool(prediction.strip() and expected.strip()) and answers_match(prediction, expected)
    scores = {}
    if WELL_FORMED.fullmatch(reference):
        scores["well_formed"] = float(WELL_FORMED.fullmatch(answer) is not None)
    return scores | {"correct": float(correct or answer.strip() == reference.strip())}


# ---------------------------------------------------------------------------------------------- normalization

_LATEX = (
    (r"\\\$", "\uffe0"),
    (r"\$([^$]+)\$(?!\d)", r"\1"),
    ("\uffe0", "$"),  # $...$ is mathematics, \$ is money
    (r"(?<=\d)\s*\\[dt]?frac", r" \\frac"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}", r"\1"),
    (r"\^\{?\\circ\}?", "°"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\%", "%"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\(?:left|right)\b|\\[()\[\]!,; ]", ""),
)
_FRACTION = re.compile("(?=[¼-¾⅐-⅟↉])")
_DASHES = dict.fromkeys(map(ord, "−–—‐‑"), "-")
_RAISED = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_EMPHASIS = re.compile(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1|^\*(.+)\*$")
_STOP = re.compile(r"(?:[.。?;,、…\s]|(?<!\d)!)+$")  # 5! is 120
_PAIRS = {"(": ")", "[": "]", "【": "】", "“": "”", "‘": "’", '"': '"', "'": "'", "「": "」", "『": "』", "《": "》"}
_LEAD = re.compile(
    r"(?:^|[.。!?;,\n:]\s*)(?:(?:so|thus|hence|therefore|所以|因此|因而|故|综上所述|综上|最后|那么|即)[\s,:]*)?(?:"
    r"(?:the\s*|my\s*)?(?:final\s*|correct\s*|right\s*)?answer\s*(?:is|:|=)\s*:?"
    r"|(?:我的|本题的?|最终的?|最后的?|正确的?)?(?:答案|结果)\s*(?:应该是|应该|应是|应|就是|[是为:=])\s*:?"
    r"|[应故我]?选择?项?\s*[是为:]?(?=\s*[(\[【]?[A-J](?![a-z]))|(?:option|choice)\s*:?(?=\s*\(?[A-J]\b)|\#{2,}"
    r")\s*",
    re.IGNORECASE,
)


def _unbox(text: str) -> str:
    r"""Return the content of the last \boxed{...}, with the braces inside it, or the text as it is."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return text
    start, depth = start + len(r"\boxed{"), 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text


def _to_plain_text(text: str) -> str:
    r"""Remove LaTeX and unify characters: \frac12 and ½ become 1/2, 10² becomes 10^2, an en dash becomes -."""
    text = _unbox(text)
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    text = _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = _FRACTION.sub(" ", text.rstrip("！ \n"))
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/").translate(_DASHES)


def strip_wrapping(text: str) -> str:
    """Remove what people put around an answer: "the answer is", bold, brackets, quotes, a full stop."""
    text = _EMPHASIS.sub(lambda match: match[2] or match[3], _to_plain_text(text)).strip()
    before = None
    while before != text:  # 【**B**】。
        before = text
        text = _STOP.sub("", text).strip() or text
        inside = text[1:-1]
        wrapped = _PAIRS.get(text[:1]) == text[-1:] and inside.strip() and not set(inside) & {text[0], text[-1]}
        if wrapped and not (text[0] in "([" and "," in inside):  # (1, 2) and [1, 2] are two values
            text = inside.strip()
        leads = list(_LEAD.finditer(text))
        if leads:
            text = text[leads[-1].end() :].strip() or text
    return text


def normalize_answer(text: str) -> str:
    """Return the form in which answers that are neither numbers nor letters are compared.

    Stripped of its wrapping, in lower case and without spaces, except between digits (3 5).
    """
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", strip_wrapping(text)).casefold()


# ------------------------------------------------------------------------------------------------------ choices

_CHOICE = re.compile(
    r"(?:[(\[【]\s*(?P<bracketed>[A-J])\s*[)\]】]|(?P<bare>[A-J])(?![a-z]))\s*"
    r"(?:选项|项|is (?:the )?(?:correct|right)(?: answer| one)?|是?(?:正确|对)的?)?"
    r"(?:(?:\s*[.:)、,]\s*|\s+-\s+|(?<=[)\]】])\s+)(?P<rest>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_ANOTHER = re.compile(
    r"(?:^|[,;/、]\s*|\bor\s+(?:maybe\s+)?|或者?|还是)[(\[【]?[A-J][)\]】]?(?:$|[.:)、,;]|[都均和或]|\s+(?:or|and)\b)",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"\s*(?:[,、和与&;]|\band\b)\s*|\s+", re.IGNORECASE)


class Choice(NamedTuple):
    """Letters, and the words after a single one: "B: 7" is ("b", "7")."""

    letters: str
    words: str = ""


def parse_choice(text: str) -> Choice | None:
    """Return the choice in a stripped text, or None: a letter, alone or before its words, or several ("ABD", "A、C").

    Several letters with their words are a hedge or something else, and no choice.
    """
    letters = _BETWEEN.sub("", text).casefold()
    if len(text) <= 32 and re.fullmatch("[a-j]{2,10}", letters) and list(letters) == sorted(set(letters)):
        return Choice(letters)
    match = _CHOICE.fullmatch(text)
    if match is None or _ANOTHER.search(match["rest"] or ""):
        return None
    return Choice((match["bracketed"] or match["bare"]).casefold(), match["rest"] or "")


def answers_match(prediction: str, reference: str) -> bool:
    """Return whether two answers say the same: by number and unit, by letter, or by normalized words."""
    if prediction == reference:
        return True
    prediction, reference = strip_wrapping(prediction), strip_wrapping(reference)
    left, right = parse_quantity(prediction), parse_quantity(reference)
    if left and right:
        return left.value == right.value and (left.unit == right.unit or not left.unit or not right.unit)
    if left or right:
        return False
    chosen, correct = parse_choice(prediction), parse_choice(reference)
    if chosen and correct and chosen.letters == correct.letters:
        return not chosen.words or not correct.words or answers_match(chosen.words, correct.words)
    return normalize_answer(prediction) == normalize_answer(reference)
