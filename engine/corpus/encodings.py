"""The encoding of a text, by its bytes alone: sure, or unknown."""

from engine.corpus.file_types import BOM, is_utf8

BOMS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    BOM: "utf-8",
}


def guess_encoding(sample: bytes) -> str:
    """Return the name of the codec of a text; "" where nothing is sure enough.

    Args:
        sample: Its beginning; the last character may be cut.
    """
    for mark, name in BOMS.items():
        if sample.startswith(mark):
            return name
    if is_utf8(sample) or _is_damaged_utf8(sample):
        return "utf-8"
    return ""


def _is_damaged_utf8(sample: bytes) -> bool:
    """Return whether half of the characters that are not ASCII are UTF-8: those of no other encoding are by chance."""
    text = sample.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) >= 2 * broken
