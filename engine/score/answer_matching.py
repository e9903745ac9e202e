r"""Judging an answer by its words: exact match, overlap, the form of a thought, and whether its answer is right.

The thought is cut away first; what stands in <answer> behind it, or all the rest, is the answer. Two answers are the
same when they are equal after normalisation, are the same number in the same unit (1,234.0 and $1234; a unit may be
missing, not different), or choose the same letters ((B), "B: 7" and "The answer is B."). \boxed{...} stands for what
is in it. tests/score/answers_table.jsonl shows by 150 pairs what that means.
"""

import re
import unicodedata
from typing import NamedTuple

from engine.reasoning import WELL_FORMED, final_answer, tag_form
from engine.score.quantities import number
from engine.score.token_f1 import token_f1

# ----------------------------------------------------------------------------------- the thought and the answer


def is_thought(reference: str) -> bool:
    """Whether a row teaches to think: its answer holds one of the tags."""
    return tag_form(reference) != "none"


def answer_key(reference: str) -> str:
    """By what references are counted as the same, for the share that the most frequent one would get."""
    return normalised(final_answer(reference)) if is_thought(reference) else reference.strip()


def judge(answer: str, reference: str) -> dict[str, float]:
    """The figures of one answer: form and correctness for a thought, else exact words and F1.

    Who repeats the reference word for word gets every mark; a form that the reference does not have is not asked for.
    """
    given = final_answer(answer)
    if not is_thought(reference):
        return {"exact": float(given.strip() == reference.strip()), "f1": token_f1(given, reference)}
    wanted = final_answer(reference)
    right = bool(given.strip() and wanted.strip()) and answers_match(given, wanted)
    marks = {"well_formed": float(WELL_FORMED.fullmatch(answer) is not None)}
    marks = marks if WELL_FORMED.fullmatch(reference) else {}
    return marks | {"correct": float(right or answer.strip() == reference.strip())}


# --------------------------------------------------------------------------------------------- one answer, tidied

_LATEX = [
    (re.compile(pattern), new)
    for pattern, new in (
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
]
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


def _plain(text: str) -> str:
    r"""Without LaTeX and with one form for every character: \frac12 and ½ are 1/2, 10² is 10^2, an en dash is -."""
    text = _unboxed(text)
    for pattern, new in _LATEX:
        text = pattern.sub(new, text)
    text = _RAISED.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = "".join(
        f" {character}" if unicodedata.decomposition(character).startswith("<fraction>") else character
        for character in text.rstrip("！ \n")
    )
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/").translate(dict.fromkeys(map(ord, "−–—‐‑"), "-"))


def tidy(text: str) -> str:
    """An answer without what people put around it: "the answer is", bold, brackets, quotes, a closing stop."""
    text = _EMPHASIS.sub(lambda match: match[2] or match[3], _plain(text)).strip()
    before = None
    while before != text:  # 【**B**】。
        before = text
        text = _STOP.sub("", text).strip() or text
        inside = text[1:-1]
        wrapped = _PAIRS.get(text[:1]) == text[-1:] and inside.strip() and not set(inside) & {text[0], text[-1]}
        if wrapped and not (text[0] in "([" and "," in inside):  # (1, 2) and [1, 2] are two things
            text = inside.strip()
        *_, lead = [None, *_LEAD.finditer(text)]
        text = (text[lead.end() :] if lead else text).strip() or text
    return text


def normalised(text: str) -> str:
    """What two answers that are neither numbers nor letters are compared by: tidy, no case, no spaces (but in 3 5)."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text)).casefold()


# ------------------------------------------------------------------------------------------------------ choices

_CHOICE = re.compile(
    r"(?:[(\[【]\s*(?P<one>[A-J])\s*[)\]】]|(?P<two>[A-J])(?![a-z]))\s*"
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
    """The letters, and the words that follow a single one: "B: 7" is ("b", "7")."""

    letters: str
    words: str = ""


def choice(text: str) -> Choice | None:
    """What a tidy text chooses: a letter, alone or before its words, or several in order ("ABD", "A、C"). Who names
    several with their words hedges, or means something else."""
    listed = _BETWEEN.sub("", text).casefold()
    if len(text) <= 32 and re.fullmatch("[a-j]{2,10}", listed) and list(listed) == sorted(set(listed)):
        return Choice(listed)
    match = _CHOICE.fullmatch(text)
    if match is None or _ANOTHER.search(match["rest"] or ""):
        return None
    return Choice((match["one"] or match["two"]).casefold(), match["rest"] or "")


def answers_match(given: str, wanted: str) -> bool:
    """Whether two answers say the same. A unit may be left out, not changed; letters go before the text they name."""
    if given == wanted:
        return True
    given, wanted = tidy(given), tidy(wanted)
    ours, theirs = number(given), number(wanted)
    if ours or theirs:
        if not (ours and theirs):
            return False
        return ours[0] == theirs[0] and (ours[1] == theirs[1] or not ours[1] or not theirs[1])
    chosen, right = choice(given), choice(wanted)
    if chosen and right and chosen.letters == right.letters:
        return not chosen.words or not right.words or answers_match(chosen.words, right.words)
    return normalised(given) == normalised(wanted)
