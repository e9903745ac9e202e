"""API keys, ID numbers, e-mail addresses and phone numbers: found by their form, replaced by a placeholder."""

import re
from collections.abc import Callable
from datetime import date

API_KEY, PRIVATE_KEY, ID_NUMBER, CARD, EMAIL, PHONE = (
    f"[{name}]" for name in ("API_KEY", "PRIVATE_KEY", "ID_NUMBER", "CARD_NUMBER", "EMAIL", "PHONE")
)

# Whose key, and its form. `secret` is what is replaced; without it the whole match is.
API_KEY_FORMS = {
    "OpenAI, Anthropic, DeepSeek": r"sk-(?=(?:[\w-]*\d){3})[\w-]{20,}",
    "AWS": r"(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "AWS's secret": r"(?i:(?:aws_?)?secret_?(?:access_?)?key)\W{1,6}(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
    "GitHub": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}",
    "GitLab": r"glpat-[\w-]{20,}",
    "Slack": r"xox[abeoprs]-[\w-]{10,}|(?<=hooks\.slack\.com/services/)T\w+/B\w+/\w+",
    "Google": r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{28}",
    "Hugging Face": r"hf_[A-Za-z0-9]{30,}",
    "Stripe": r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "Alibaba, Tencent": r"LTAI[A-Za-z0-9]{16,24}\b|AKID[A-Za-z0-9]{32}\b",
    "JSON web token": r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}",
    "Bearer": r"(?i:bearer) +(?P<bearer>(?=[\w.~+/-]*\d)[\w.~+/-]{20,}=*)",
}
API_KEY_RE = re.compile("|".join(rf"(?<![\w-])(?:{form})" for form in API_KEY_FORMS.values()), re.ASCII)
# A text without any of these has no key: looking for words is many times faster than the expression above.
API_KEY_SIGNS = (
    "sk- AKIA ASIA ecret SECRET ghp_ gho_ ghu_ ghs_ ghr_ _pat_ glpat xox slack AIza ya29 GOCSPX hf_ k_live_ k_test_ "
    "LTAI AKID eyJ earer BEARER"
).split()
PRIVATE_KEY_RE = re.compile(  # whole, or cut off; a program that only names the two lines has no key between them
    r"-----BEGIN (?P<kind>[A-Z ]*)PRIVATE KEY-----"
    r"(?:[\s\w+/=:,\\-]{64,8000}?-----END (?P=kind)PRIVATE KEY-----|(?:(?:\s|\\n)*[A-Za-z0-9+/]{40,}={0,2})+)",
    re.ASCII,
)

CN_ID_RE = re.compile(r"(?<![\dA-Za-z])[1-9]\d{5}(?:19|20)\d{2}[01]\d[0-3]\d{4}[\dXx](?![\dA-Za-z])", re.ASCII)
CN_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999
US_SSN_RE = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII)
CARD_RE = re.compile(
    r"(?<![\w.-])(?:(?:4|5[1-5]|2[2-7]|62)\d{2,3}(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|3[47]\d{13})(?![\w-])",
    re.ASCII,
)
DIGITS_RE = re.compile(r"\d[\d -]{10}", re.ASCII)  # the shortest of them: a cheap search before the three

EMAIL_RE = re.compile(r"(?<![\w.+/-])[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b", re.ASCII)
PHONE_RE = re.compile(
    r"(?<![\w.+-])(?:(?:\+?86[ -]?)?1[3-9]\d(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}"  # a mobile phone in China
    r"|0\d{2,3}-\d{7,8}|\(0\d{2,3}\) ?\d{7,8}"  # a fixed one
    r"|(?:\+?1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}"  # North America
    r"|\+\d{1,3}[ -]\(?\d{1,4}\)?(?:[ -]\d{2,4}){1,4})(?![\w-])",
    re.ASCII,
)


def hide_api_keys(text: str, shown: Callable[[str, str], str] = lambda secret, placeholder: placeholder) -> str:
    """Replace API keys, access tokens and private keys.

    Args:
        text: Any text.
        shown: (secret, placeholder) -> what is put there.
    """
    if "PRIVATE KEY-----" in text:
        text = PRIVATE_KEY_RE.sub(lambda match: shown(match[0], PRIVATE_KEY), text)
    if not any(sign in text for sign in API_KEY_SIGNS):
        return text

    def hide(match: re.Match) -> str:
        secret = match["secret"] or match["bearer"] or match[0]
        return match[0].replace(secret, shown(secret, API_KEY))

    return API_KEY_RE.sub(hide, text)


def hide_id_numbers(text: str, shown: Callable[[str, str], str] = lambda secret, placeholder: placeholder) -> str:
    """Replace Chinese ID numbers and payment cards with a right check digit, and US social security numbers.

    Args:
        text: Any text.
        shown: (secret, placeholder) -> what is put there.
    """
    if not DIGITS_RE.search(text):
        return text
    text = CN_ID_RE.sub(lambda match: shown(match[0], ID_NUMBER) if _is_cn_id(match[0]) else match[0], text)
    text = US_SSN_RE.sub(lambda match: shown(match[0], ID_NUMBER), text)
    return CARD_RE.sub(lambda match: shown(match[0], CARD) if _is_luhn(match[0]) else match[0], text)


def hide_contacts(text: str) -> str:
    """Replace e-mail addresses and phone numbers."""
    if "@" in text:
        text = EMAIL_RE.sub(EMAIL, text)
    return PHONE_RE.sub(PHONE, text)


def masked(text: str) -> str:
    """Return what may be shown of a text: API keys and ID numbers are replaced."""
    return hide_id_numbers(hide_api_keys(text))


def abbreviated(text: str) -> str:
    """Return a text with three characters of each API key and ID number, for the side "before" of an example."""

    def show(secret: str, placeholder: str) -> str:
        return f"{secret[:3]}…"

    return hide_id_numbers(hide_api_keys(text, show), show)


def _is_cn_id(number: str) -> bool:
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weighted = sum(weight * int(digit) for weight, digit in zip(CN_ID_WEIGHTS, number, strict=False))
    return "10X98765432"[weighted % 11] == number[17].upper()


def _is_luhn(number: str) -> bool:
    digits = [int(digit) for digit in reversed(number) if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
