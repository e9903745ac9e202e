"""Single edits of a text, for the table of rules.py: each returns the text, changed or as it is, "" for one to drop."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache

# A block of code: between fences, or lines that are indented after a blank one and have a sign that prose has not.
FENCE = r"^ {0,3}(?P<fence>`{3,}+|~{3,}+)(?:.*\n)(?:.*\n)*?(?: {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
INDENTED = r"(?:(?<=\n\n)|\A)(?:(?: {4}|\t).*(?:\n+(?= {4}|\t)|\n?))+"
CODE_RE = re.compile(f"{FENCE}|{INDENTED}", re.MULTILINE)
CODE_SIGN_RE = re.compile(r"[{}=]|\w\(|[;:]$|^\s*[$>#]", re.MULTILINE)


def outside_code(edit: Callable[[str], str]) -> Callable[[str], str]:
    """Return `edit` for all of a text but its blocks of code."""

    def edit_prose(text: str) -> str:
        edited = edit(text)
        if edited == text:  # the rule, for almost all texts: nothing has to be searched for code
            return text
        parts, start = [], 0
        for match in CODE_RE.finditer(text):
            if match["fence"] or CODE_SIGN_RE.search(match[0]):
                parts += [edit(text[start : match.start()]), match[0]]
                start = match.end()
        return "".join([*parts, edit(text[start:])]) if parts else edited

    return edit_prose


# ------------------------------------------------------------------------------------------------------ characters

# UTF-8 in another encoding: a first byte, and one that continues it. A cheap search before ftfy's, which is slow.
FIRST = "\x80-\x9f\xc2-\xf4Ă-űРСГДЕбв"
NEXT = "\x80-\xbfĄąĽľŁłŒœŚśŞşŠšŤťŹźŻżŽžŸƒˆˇ˘˛˜˝ЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњќўџҐґ–—‘’‚“”„†‡•…‰‹›€№™"
BOX = "ΓΣσµτφ√≈ƒ‚\u2500-\u257f"  # first bytes in two encodings that continue with almost anything
SUSPECT_RE = re.compile(f"[{FIRST}{BOX}](?:[{NEXT}]|(?<=[\x80-\x9f])|(?<=[ÂÃ]) |(?<=[{BOX}])[^\x00-\x7fͰ-Ͽἀ-῾])")
# What Chinese and “ ” in UTF-8 are made of when it is read as GBK, a tenth of all; hardly ever meant. And U+FFFD.
READ_AS_GBK_RE = re.compile("[锛紝銆鐨浠屽鍙鍏屾鎴屼鍒鏄杩傛勫垜鐢鍦鈥\ufffd]")
MIN_LOST, MIN_LOST_SHARE = 3, 0.01  # so many of them, and such a share of its characters, call a text lost


@cache
def load_ftfy() -> Callable[[str], str]:
    """Return ftfy's repair of encodings.

    Raises:
        ValueError: ftfy is missing.
    """
    try:
        from ftfy import fix_encoding
    except ImportError:
        raise ValueError("the rule mojibake needs ftfy: pip install ftfy, or type --no-mojibake") from None
    return fix_encoding


def mend_mojibake(text: str) -> str:
    """Read UTF-8 again that was read as another encoding; "" where too many bytes of it are lost."""
    if text.isascii():
        return text
    if SUSPECT_RE.search(text):
        text = load_ftfy()(text)
    if READ_AS_GBK_RE.search(text):
        text = "\n".join(map(_reread_gbk, text.split("\n")))
        lost = len(READ_AS_GBK_RE.findall(text))
        return "" if lost >= max(MIN_LOST, MIN_LOST_SHARE * len(text)) else text
    return text


def _reread_gbk(line: str) -> str:
    """Return what a line in UTF-8 was before it was read as GBK, if every byte of it is there."""
    try:
        return b"\x80".join(part.encode("gb18030") for part in line.split("€")).decode()
    except UnicodeError:
        return line


def compose(text: str) -> str:
    """Return the text in Unicode's form NFC: a letter and its accents are one character."""
    return unicodedata.normalize("NFC", text)


# \bar and \frac after a careless reader of JSON: there \b is a backspace, and \f a form feed.
LATEX_RE = re.compile("\x08(?=ar|eta|egin|inom|ox|ig|old)|\f(?=rac|orall|lat)")
BREAK_RE = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Joiners belong to the words of these scripts: Arabic and Persian, Syriac to N'Ko, those of India and Sri Lanka,
# Tibetan, Mongolian; zero-width spaces divide words in Thai, Lao, Burmese and Khmer.
JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u0fff\u1800-\u18af"
SPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
EMOJI = "\u00a9\u00ae\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
UNSEEN_RE = re.compile(  # one set of characters: a cheap search before the other two
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0001-\U000e007f]"
)
INVISIBLE_RE = re.compile(
    "\x1b\\[[0-9;?]*[A-Za-z]"  # colors of a terminal
    "|[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
    f"|(?<![{SPACED}])\u200b|\u200b(?![{SPACED}])"
    f"|(?<![{JOINING}{EMOJI}])\u200d|(?<![{JOINING}])\u200c"
    "|(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]+"  # hidden data: one of them chooses a form, more say nothing
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0001-\U000e007f]+"  # but of flags, as that of Scotland
)


def remove_invisible(text: str) -> str:
    """Remove control and invisible characters outside of code; every line break becomes a line feed, in code too.

    Tabs stay, U+FFFD and private characters too, and what emoji and the scripts of Persian, Hindi or Thai need.
    """
    return _remove_unseen(text.replace("\r\n", "\n").replace("\r", "\n")) if UNSEEN_RE.search(text) else text


@outside_code
def _remove_unseen(text: str) -> str:
    text = LATEX_RE.sub(lambda match: "\\b" if match[0] == "\b" else "\\f", text)
    return INVISIBLE_RE.sub("", BREAK_RE.sub("\n", text))


def show_invisible(text: str) -> str:
    """Return the text with escapes for what remove_invisible would change."""
    text = INVISIBLE_RE.sub(lambda match: ascii(match[0])[1:-1], text)
    return BREAK_RE.sub(lambda match: ascii(match[0])[1:-1], text)


# ----------------------------------------------------------------------------------------------------------- lines

MIN_LINE_BYTES = 75  # 25 Chinese characters: verses and refrains are shorter
MIN_REPEATS = 4  # fewer may be meant, as in a law or a recipe, unless one follows directly on the other
SENTENCE_RE = re.compile(r"[^\W\d_a-z].*[.!?。！？…]\W?")  # no item of a list, and no part of a wrapped paragraph


def drop_repeated_lines(text: str) -> str:
    """Remove all but the first of equal long lines, where there are four or more, or where one follows on another."""
    counts = Counter(filter(_is_long, map(str.strip, text.split("\n"))))
    if all(count == 1 for count in counts.values()):
        return text
    seen: set[str] = set()
    previous, lines = "", []
    for line in text.split("\n"):
        words = line.strip()
        is_common = counts[words] >= MIN_REPEATS and SENTENCE_RE.fullmatch(words)
        if words not in seen or not (is_common or words == previous):
            lines.append(line)
        if words in counts:
            seen.add(words)
        previous = words or previous
    return "\n".join(lines)


def _is_long(words: str) -> bool:
    return len(words.encode("utf-8", "surrogatepass")) >= MIN_LINE_BYTES and _is_text(words) and words[0] not in "|+"


def _is_text(words: str) -> bool:
    """Return whether at least half of the characters are letters or digits; of equal ones in a row one counts."""
    words = re.sub(r"(\W)\1+", r"\1", re.sub(r"\s+", "", words))
    return 2 * len(re.sub(r"\W+", "", words)) >= len(words)


# ------------------------------------------------------------------------------------------------------ whole texts

REFUSAL_RE = re.compile(
    r"\W*(?:(?:(?:I['’]m|I am) (?:very |so )?sorry|sorry|I apologi[sz]e|unfortunately)\b.{0,20}?)?"
    r"(?:as an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|I(?:['’]m| am) (?:just |only )?an? (?:AI|(?:large )?language model)\b"
    r"|I(?: can(?:not|['’]t)|['’]m (?:not able|unable) to| am (?:not able|unable) to|['’] ?won['’]t)"
    r" (?:assist|help|comply|fulfil|provide|answer|do that|create|generate|support|engage))"
    r"|\W*(?:(?:很|非常|十分)?(?:抱歉|对不起|遗憾)[，,。！ ]*)?(?:(?:但是?|因为|由于)[，,]?)?"
    r"(?:(?:作为|我(?:只)?是|身为)(?:一个|一名|一款|一种)?(?:人工智能|AI|大?语言模型|大模型)"
    r"|我(?:无法|不能|不可以|没办法|没有办法)(?:提供|回答|协助|帮助你|满足|完成|生成|讨论|参与|支持|执行|处理))",
    re.IGNORECASE,
)


def drop_refusal(text: str) -> str:
    """Return "" for an answer that begins by refusing, or by saying that it is an AI's."""
    return "" if REFUSAL_RE.match(text) else text


MIN_TEXT_BYTES = 60  # 20 Chinese characters


def drop_short(text: str) -> str:
    """Return "" for a text of fewer than 60 bytes: 20 Chinese characters, or 60 Latin ones."""
    return text if len(text.encode("utf-8", "surrogatepass")) >= MIN_TEXT_BYTES else ""


MATH_RE = re.compile(r"\$[^$]{1,600}\$")


def drop_symbols(text: str) -> str:
    """Return "" for a text of which less than half is letters or digits, code and formulas not counted."""
    return text if _is_text(MATH_RE.sub("", CODE_RE.sub("", text))) else ""
