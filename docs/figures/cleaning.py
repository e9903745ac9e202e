"""Generate the table of the rules of cleaning in docs/data.md and docs/data_zh.md.

    cog -r docs/data.md docs/data_zh.md    # after a change of engine/corpus/rules.py

Names, reasons and examples are those of RULES. `python -m benchmarks.rules` counts the faults found; the changes
were read by hand.
"""

import re

from engine.corpus.edits import show_invisible
from engine.corpus.rules import RULES, Content, Rule, render

# Rule -> (found, of faults put in), (right, of changes and drops read). Mojibake: as cp1252 or latin-1; as GBK.
MEASURED = {
    "mojibake": ("200 of 200; GBK 90 of 100", "26 of 27"),
    "nfc": ("50 of 50", "7 of 11"),
    "invisible": ("50 of 50", "69 of 79"),
    "last_question": ("50 of 50", "0"),
    "api_keys": ("50 of 50", "25 of 25"),
    "id_numbers": ("50 of 50", "0"),
    "contacts": ("50 of 50", "30 of 31"),
    "boilerplate": ("50 of 50", "21 of 25"),
    "repeated_lines": ("46 of 50", "15 of 16"),
    "refusals": ("50 of 50", "6 of 6"),
    "too_short": ("50 of 50", "1 of 1"),
    "too_many_symbols": ("46 of 50", "6 of 6"),
}
WORDS = {
    "en": {
        "head": "| rule | | what it does, and why | before → after | found of faults put in | right of what was read |",
        True: "on", False: "off", None: "always", "dropped": "dropped",
    },
    "zh": {
        "head": "| 规则 | | 做什么，为什么 | 清洗前 → 清洗后 | 人为错误中找到的 | 人工读过的改动中正确的 |",
        True: "开", False: "关", None: "总是", "dropped": "删除",
    },
}  # fmt: skip
IN_CHINESE = {
    "broken_row": "不是 JSON，或者既没有文本也没有对话：没有可学的",
    "empty_row": "没有文字",
    "nothing_to_learn": "对话里的回答全是空的，或被 label 之类的字段判为差",
    "mojibake": "被当成别的编码读过的 UTF-8 重新读回来；字节已经丢失的文本删除",
    "nfc": "字母和它的重音符号合成一个字符（Unicode NFC）：一种写法，一串 token",
    "invisible": "去掉控制字符、零宽字符和方向字符，换行统一成 \\n：它们看不见，却占 token",
    "last_question": "去掉对话最后一个回答之后的内容：它没有回答",
    "api_keys": "API key、访问令牌和私钥换成占位符：模型会把读过的东西说出来",
    "id_numbers": "校验位正确的身份证号和银行卡号、美国社会安全号码换成占位符",
    "contacts": "电子邮箱和电话号码换成占位符",
    "boilerplate": "去掉一个来源一半以上的文本里都有的行；标题和表格行除外",
    "repeated_lines": "75 字节以上的相同的行，一篇文本里有四行以上或两行相连，只留一行",
    "refusals": "去掉以拒绝或“作为 AI”开头的回答和文本",
    "too_short": "不足 60 字节：20 个汉字",
    "too_many_symbols": "字母、汉字和数字不到一半，代码和公式不计",
    "exact_repeat": "和前面某一行的文字相同，不论格式和文件",
    "near_repeat": "和更长的某一行几乎相同",
    "held_out_repeat": "--against 的文件里有的行：相同、几乎相同或包含在内",
    "too_long": "连第一个回答都放不下的对话",
}


def cleaning(language: str) -> str:
    """Return the table of all rules."""
    words = WORDS[language]
    lines = [words["head"], "|---|---|---|---|---|---|"]
    for rule in RULES:
        reason = rule.help if language == "en" else IN_CHINESE[rule.name]
        found, right = MEASURED.get(rule.name, ("", ""))
        if language == "zh":
            found, right = (count.replace(" of ", "/").replace("; ", "；") for count in (found, right))
        lines.append(f"| `{rule.name}` | {words[rule.on]} | {reason} | {_example(rule, words)} | {found} | {right} |")
    return "\n".join(lines) + "\n"


def _example(rule: Rule, words: dict) -> str:
    before, after = rule.example
    return f"{_cell(before)} → {words['dropped'] if after is None else _cell(after)}"


def _cell(content: Content) -> str:
    """Return what a row says as code within one cell; a line break is ⏎."""
    text = show_invisible(render(content)).replace("|", "\\|")
    text = re.sub("[\u0300-\u036f]", lambda accent: ascii(accent[0])[1:-1], text)
    return f"`{text}`".replace("\n", " ⏎ ")
