"""Parse numbers as people write them, with their unit: 1,234.5 kg, -1 1/2, 3×10^4, 50 %, $5, 3万元."""

import re
from fractions import Fraction
from typing import NamedTuple

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SIGN = r"[-+]|负|minus\s+"
_NUMBER = re.compile(
    rf"(?:[k-z]\s*=|=|等于|一共有?|总共有?|共有?)?\s*(?P<outer>{_SIGN})?\s*(?P<share>百分之)?(?P<money>US\$|[$¥€£])?\s*"
    rf"(?P<inner>{_SIGN})?\s*"  # -$5 and $-5
    rf"(?:(?P<whole>\d+)(?:\s+|又)(?P<part>\d+/\d+)|(?P<over>{_DIGITS})\s*/\s*(?P<under>\d+)|(?P<base>{_DIGITS})"
    r"(?:e(?P<e>[-+]?\d{1,3})|\s*[×x*]\s*10(?:\^|\*\*)(?P<ten>[-+]?\d{1,3})|(?:\^|\*\*)(?P<power>[-+]?\d{1,2}))?)"
    r"\s*(?P<many>万|亿|(?:thousand|million|billion)\b)?\s*(?P<unit>[^\d\s](?:.*[^\s])?)?",
    re.IGNORECASE,
)
_MANY = {"万": 10**4, "亿": 10**8, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_UNIT = re.compile(r"%|[^\W\d_]{1,16}(?: [^\W\d_]{1,12})?(?:\^?[23])?|°[CF]?|[^\W\d_]{1,9}/[^\W\d_]{1,9}(?:\^?2)?")
_NO_UNIT = re.compile(r"\b(?:is|are|not?|or|and|to|maybe|wrong)\b|[不或吗还和至对错]", re.IGNORECASE)
_SYMBOLS = frozenset("mMgGlLshtTVWJNACFKB")  # 3x and 2i have no unit
_PREFIXED = frozenset("m mw mv ma mg mj mn ml mm ms mb mhz mpa mev mwh".split())  # where m is milli and M is mega
_ALIASES = {
    "%": "percent 个百分点", "$": "us$ dollar usd 美元", "¥": "元 yuan rmb cny 人民币 块 块钱 元钱",
    "€": "euro eur 欧元", "£": "pound gbp 英镑", "kg": "千克 公斤 kilogram", "g": "克 gram",
    "km": "千米 公里 kilometer kilometre", "m": "米 meter metre", "cm": "厘米 centimeter centimetre", "mm": "毫米",
    "l": "升 liter litre", "ml": "毫升", "h": "小时 hour hr 个小时", "min": "分钟 minute",
    "s": "秒 second sec 秒钟", "day": "天", "year": "年", "°c": "摄氏度", "cm2": "平方厘米", "m2": "平方米",
}  # fmt: skip


class Quantity(NamedTuple):
    """A value and the name of its unit ("": none)."""

    value: Fraction
    unit: str


def _unit_name(text: str) -> str | None:
    """Return one name for a unit, or None if the text is none: more words, a doubt, a variable."""
    text = re.sub(r"^(?:per cent|percent)$", "%", text.strip(), flags=re.IGNORECASE)
    if not _UNIT.fullmatch(text) and text not in ("$", "US$", "¥", "€", "£") or _NO_UNIT.search(text):
        return None
    if len(text) == 1 and text.isascii() and text.isalpha() and text not in _SYMBOLS:
        return None
    name = text.replace("^", "").casefold()
    if len(name) > 3 and name.isascii():
        name = name.removesuffix("s")
    name = next((unit for unit, aliases in _ALIASES.items() if name in aliases.split()), name)
    return "M" + name[1:] if text[0] == "M" and name in _PREFIXED else name


def parse_quantity(text: str) -> Quantity | None:
    """Return the quantity that a text without wrapping is, or None."""
    match = _NUMBER.fullmatch(text) if len(text) <= 64 else None  # a stuck model may write thousands of digits
    if match is None or (match["outer"] and match["inner"]):
        return None
    units = ["%" if match["share"] else "", match["money"] or "", match["unit"] or ""]
    names = [_unit_name(unit) for unit in units if unit]
    if None in names:
        return None
    try:
        value = Fraction((match["whole"] or match["over"] or match["base"]).replace(",", ""))
        value = value / Fraction(match["under"] or 1) + Fraction(match["part"] or 0)
        value = value ** int(match["power"] or 1)
    except ZeroDivisionError:
        return None
    value *= Fraction(10) ** int(match["e"] or match["ten"] or 0) * _MANY.get((match["many"] or "").casefold(), 1)
    unit = "".join(dict.fromkeys(filter(None, names)))
    return Quantity(value if (match["outer"] or match["inner"]) in (None, "+") else -value, unit)
