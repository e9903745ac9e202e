"""Edits of a text change what is broken, and leave intact text and code alone."""

import time

import pytest

from engine.corpus import rules
from engine.corpus.rules import RULES, clean

DEFAULT = {rule.name for rule in RULES if rule.on}
EVERY = {rule.name for rule in RULES}


def chat(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


INTACT = [
    "他说：“好的……”——然后走了。価格は１２３円です。",
    "L’été, à Noël : « déjà vu », œuvre – “quoted” ‘text’ … ½ × 3°",
    "São, ÂNGULO and MÃE MÃES; Größe: 5 µm, ©2020",
    "Привет, мир! Ёлка",
    "می\u200cخواهم, क\u094d\u200dष, สวัสดี\u200bครับ",
    "👨\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤\ufe0f 👍🏽",
    "┌──┐\n│░░│\n└──┘",
    "def f(x):\n\treturn x\n",
    "㎏ ﬁ ½ Ⅳ ＡＢＣ a\u00a0b\u3000c",
    "联通",
]


@pytest.mark.parametrize("text", INTACT)
def test_an_intact_text_is_left_alone(text):
    assert clean(text, DEFAULT) == (text, "", {})


@pytest.mark.parametrize("codec", ["cp1252", "latin-1", "cp437"])
def test_mojibake_of_chinese_and_french_is_mended(codec):
    french = "Un café crème, déjà prêt à Orléans"
    assert clean(french.encode().decode(codec), {"mojibake"}).content == french
    chinese = "春天来了，花都开了。"
    if codec != "cp1252":  # it has no character for five bytes
        assert clean(chinese.encode().decode(codec), {"mojibake"}).content == chinese


def test_text_read_as_gbk_is_mended_where_no_byte_is_lost_or_else_dropped():
    whole = "今天，我的是，他的国，你好好"  # each pair of characters is three pairs of bytes
    assert clean(whole.encode().decode("gbk"), {"mojibake"}).content == whole
    lost = clean("他的书，是我的，也是他的。".encode().decode("gbk", "replace"), {"mojibake"})
    assert lost.content is None and lost.dropped_by == "mojibake"
    assert clean("A page about 锛 and \ufffd, " + "which tells of encodings. " * 20, DEFAULT).edits == {}


def test_invisible_characters_go_and_line_breaks_are_line_feeds():
    text = "\ufeffa\r\nb\rc\u2028d\x85e\x0cf\x00\x1b[31mg\x1b[0m\u200d\u202eh\u200c\u2066"
    assert clean(text, {"invisible"}).content == "a\nb\nc\nd\ne\nfgh"
    assert clean("\x08ar{z} = \x0crac{1}{2}", {"invisible"}).content == r"\bar{z} = \frac{1}{2}"
    hidden = "hello" + "".join(chr(0xE0000 + ord(letter)) for letter in "obey") + "\ufe0f\ufe01\ufe02"
    assert clean(hidden, {"invisible"}).content == "hello\ufe0f"


CODE = "Print it:\n\n```python\nprint('cafÃ© e\u0301 ann@example.org')\n```\n\ncafÃ© e\u0301\n\n    print('cafÃ©')\n"


def test_code_stays_and_prose_around_it_is_edited():
    windows = "\ufeffa\r\n\r\n```\r\n\u200b\r\n```\r\n"
    assert clean(windows, {"invisible"}).content == "a\n\n```\n\u200b\n```\n"
    content = clean(CODE, EVERY).content
    assert content == CODE.replace("\n\ncafÃ© e\u0301", "\n\ncafé é")
    indented = "    The cafÃ© of a paragraph that is indented.\n"
    assert "café" in clean(indented, DEFAULT).content
    assert "[API_KEY]" in clean("```\nkey = AKIAIOSFODNN7EXAMPLE\n```", DEFAULT).content


def test_refrains_and_code_are_no_repeats():
    long = rules.LONG_LINE
    song = "All you need is love,\nlove is all you need.\n" * 3
    code = f"```\n{long}\n{long}\n```"
    assert clean(song + code, {"repeated_lines"}).edits == {}
    wrapped = "The high resolution timestamp that says at which moment of the start of the process\na step ended.\n" * 5
    assert clean(wrapped + "=" * 80 + "\n" + "=" * 80, {"repeated_lines"}).edits == {}
    law = f"{long}\nArticle 1\n" * 3
    assert clean(law, {"repeated_lines"}).content == law
    assert clean(law + long, {"repeated_lines"}).content == f"{long}\n" + "Article 1\n" * 2 + "Article 1"
    assert clean(f"{long}\n\n{long} \nb", {"repeated_lines"}).content == f"{long}\n\nb"


REFUSALS = [
    "As an AI language model, I cannot.",
    "I'm sorry, but I can't assist with that.",
    "作为一个人工智能语言模型，我没有感情。",
    "很抱歉，我无法提供这些信息。",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals_go_with_their_question(answer):
    assert clean(chat("Q", answer, "1+1?", "2"), {"refusals"}).content == chat("1+1?", "2")
    assert clean(answer, {"refusals"}).dropped_by == "refusals"
    assert clean(chat(answer, "An answer that is one."), {"refusals"}).edits == {}


def test_formulas_and_code_are_no_symbols():
    for text in ("${{x}^{2}}+{{y}^{2}}={{z}^{2}}$，求 x。", "```\n{}[]()<>;;;;\n```\nThat is it."):
        assert clean(text, {"too_many_symbols"}).edits == {}
    assert clean("=-=-=-=-=-= o =-=-=-=-=-=", {"too_many_symbols"}).dropped_by == "too_many_symbols"


@pytest.mark.parametrize("text", ["`" * 60_000, "-----BEGIN PRIVATE KEY-----\n" * 700, "é\u0301 " * 5_000])
def test_a_text_that_is_made_of_one_sign_takes_no_time(text):
    start = time.process_time()
    clean(text, EVERY)
    assert time.process_time() - start < 1
