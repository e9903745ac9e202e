"""The encoding of a text, by its bytes alone: known, or unknown where a guess may be wrong."""

import codecs
import re
from collections.abc import Callable

from engine.corpus.file_types import BOM, is_utf8

BOMS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    BOM: "utf-8",
}
# The guesses that are trusted, by their names in chardet and in web pages, and their codec in Python.
DOUBLE_BYTE = {
    **dict.fromkeys(("gb18030", "gbk", "gb2312", "x-gbk"), "gb18030"),
    **dict.fromkeys(("big5", "big5-hkscs", "cp950"), "cp950"),
    **dict.fromkeys(("shift_jis", "shift-jis", "x-sjis", "cp932", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-jp", "x-euc-jp"), "euc_jp"),
    **dict.fromkeys(("euc-kr", "cp949", "ks_c_5601-1987"), "cp949"),
}
SINGLE_BYTE = {
    **dict.fromkeys(("windows-1252", "cp1252", "iso-8859-1", "iso8859-1", "latin1", "us-ascii"), "cp1252"),
    **dict.fromkeys(("iso-8859-15", "iso8859-15"), "iso8859-15"),
}
MIN_BYTES = 60  # that are not ASCII: in fewer, one double-byte encoding may look like another
GUESS_BYTES = 4096
META_RE = re.compile(rb"<meta[^>]{1,200}charset\s*=\s*[\"']?([\w-]{2,40})", re.IGNORECASE)
# Letters of western Europe, and what is written between words; a sign in a word is a letter of DOS or of a Mac.
UNLIKELY_CP1252_RE = re.compile(
    rb"[A-Za-z](?:[\x82\x84\x87\x88\x8a]|"
    rb"[\x81-\x89\x8b\x8d\x8f\x90\x93\x94\x98\xa1-\xa9\xab-\xb3\xb5\xb6\xb8\xb9\xbb-\xbf][a-z])"
)
# ASCII, Latin, Greek, Cyrillic, dashes and quotes, Chinese and Japanese.
LIKELY_RE = re.compile("[\t\n\r -~\xa0-\u017f\u0370-\u04ff\u2010-\u203b\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")


def guess_encoding(sample: bytes, detect: Callable[[bytes], str]) -> str:
    """Return the codec of a text; "" where it is not sure.

    Args:
        sample: Its beginning; the last character may be cut.
        detect: Names the encoding of a text that is none of Unicode's, as chardet does.
    """
    if name := guess_unicode(sample):
        return name
    if (match := META_RE.search(sample[:GUESS_BYTES])) and (
        name := (DOUBLE_BYTE | SINGLE_BYTE).get(match[1].decode().lower(), "")
    ):
        return name if is_text_of(name, sample) else ""
    lines = b"".join(line for line in sample.splitlines(keepends=True) if not line.isascii())[:GUESS_BYTES]
    name = detect(lines).lower()
    if name in DOUBLE_BYTE and is_text_of(DOUBLE_BYTE[name], sample):
        return DOUBLE_BYTE[name] if sum(byte > 127 for byte in lines) >= MIN_BYTES else ""
    if name in SINGLE_BYTE and is_text_of(SINGLE_BYTE[name], sample) and not UNLIKELY_CP1252_RE.search(sample):
        return SINGLE_BYTE[name]
    return ""


def guess_unicode(sample: bytes) -> str:
    """Return the codec of a text of UTF-8, UTF-16 or UTF-32, of which a part may be damaged; "" of another."""
    for mark, name in BOMS.items():
        if sample.startswith(mark):
            return name
    if is_utf8(sample):
        return "utf-8"
    likely = [name for name in ("utf-16-le", "utf-16-be") if _is_likely_utf16(sample, name)]
    if likely:
        return likely[0] if len(likely) == 1 else ""
    text = sample.decode("utf-8", "replace")
    is_damaged_utf8 = sum(character > "\x7f" for character in text) >= 2 * text.count("\ufffd")
    return "utf-8" if is_damaged_utf8 else ""


def _is_likely_utf16(sample: bytes, codec: str) -> bool:
    """Return whether nine of ten characters are likely ones; a line break or a space has a byte 0."""
    text = sample.decode(codec, "replace")
    return b"\0" in sample and "\0" not in text and len(LIKELY_RE.findall(text)) >= 0.9 * len(text)


def is_text_of(codec: str, sample: bytes) -> bool:
    """Return whether a text can be in an encoding."""
    try:
        codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True
