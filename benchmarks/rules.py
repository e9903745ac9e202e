"""Rules of cleaning: how many of the faults that are put into intact rows each finds, and what it changes unasked.

    python -m benchmarks.rules --data FOLDER --changes changes.jsonl

Of the rows in FOLDER's JSONL files 50 a fault are drawn in which the rule finds nothing; the fault is put in by a
program, into a text or into an answer. It is found if the row is as it was before, or the row or the turn is dropped;
a key or a number if it is gone. `--changes` takes every change and drop of all rules in the rows as they are, to be
read by hand.
"""

import argparse
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import ftfy.bad_codecs  # noqa: F401  (it registers cp1252 with its holes)

from dataset import PretrainDataset, SFTDataset
from engine.corpus.boilerplate import LineSample
from engine.corpus.edits import CODE_RE
from engine.corpus.jsonl import parse_line
from engine.corpus.rules import RULES, Content, clean, render
from engine.schemas import BadRow

MAX_FAULTS = 50
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEX, DIGITS = "0123456789abcdef", "0123456789"
MIXED = LETTERS + LETTERS.lower() + DIGITS
KEYS = (  # prefix, length, alphabet
    ("sk-proj-", 48, MIXED + "-_"), ("sk-", 32, HEX), ("sk-ant-api03-", 95, MIXED + "-_"),
    ("AKIA", 16, LETTERS + "234567"), ("ghp_", 36, MIXED), ("github_pat_", 82, MIXED + "_"), ("xoxb-", 50, MIXED + "-"),
    ("AIza", 35, MIXED + "-_"), ("hf_", 34, MIXED), ("glpat-", 20, MIXED), ("sk_live_", 24, MIXED),
    ("LTAI", 20, MIXED), ("Bearer ", 40, MIXED),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx", 60, MIXED + "-_"),
    ("-----BEGIN PRIVATE KEY-----\n", 640, MIXED + "+/"),
)  # fmt: skip
UNSEEN = ["\u200b", "\u200c", "\u200e", "\u202a", "\u202e", "\u2060", "\u2066", "\ufeff", "\xad", "\x00", "\x1b[31m"]
ACCENTS = "café naïve Łódź São über déjà Ångström Việt ёлка が 각 ñandú".split()
FOOTER = "版权所有，未经许可不得转载。"
REFUSALS = (
    "As an AI language model, I don't have opinions. I’m sorry, but as an AI I cannot browse the web. I'm just an AI. "
    "I cannot help with that request. I'm sorry, I can't provide medical advice. I can't answer that question. "
    "Sorry, but I'm unable to assist with it. Unfortunately, I am not able to generate images. As an artificial "
    "intelligence, I do not have a body. I apologize, but I cannot fulfill this request. As a large language model "
    "trained by a company, I have no past. "
    "作为一个人工智能语言模型，我没有自己的情感。 作为AI助手，我无法访问互联网。 很抱歉，我无法回答这个问题。 "
    "抱歉，作为一名AI，我不能预测未来。 我是一个人工智能，没有亲身经历。 我无法协助您进行此类活动。 "
    "非常抱歉，我没有办法完成这个请求。 很遗憾，我不能讨论这个话题。 身为大语言模型，我不具备实时信息。 "
    "我只是一个AI模型，不能喝咖啡。 对不起，我不能提供医疗建议。"
)
REFUSALS = re.split(r"(?<=[.。]) ", REFUSALS)


def read_rows(folder: Path) -> Iterator[tuple[str, Content]]:
    """Yield (file, content) of every row that can be read."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = parse_line(line)
                yield path.name, SFTDataset.read(row) if SFTDataset.holds(row) else PretrainDataset.read(row)
            except BadRow:
                continue


def insert(text: str, words: str, dice: random.Random) -> str:
    """Put words into a text, where a line or a sentence ends."""
    ends = [i + 1 for i, character in enumerate(text) if character in "\n。. "] or [len(text)]
    place = dice.choice(ends)
    return text[:place] + words + text[place:]


# ---------------------------------------------------------------------------------------- faults: (text, dice) -> text


def misread(codec: str, whole: bool) -> Callable:
    """Return a fault: UTF-8 read as another encoding, a whole text or the line that suffers most."""

    def fault(text: str, dice: random.Random) -> str:
        lines = text.split("\n")
        worst = max(range(len(lines)), key=lambda i: len(lines[i].encode()) - len(lines[i]))
        for i, line in enumerate(lines):
            if whole or i == worst:
                lines[i] = line.encode().decode(codec, "replace")
        return "\n".join(lines)

    return fault


def unseen(text: str, dice: random.Random) -> str:
    for _ in range(3):
        place = dice.randrange(len(text) + 1)
        text = text[:place] + dice.choice(UNSEEN) + text[place:]
    return text.replace("\n", "\r\n")


def repeated(text: str, dice: random.Random) -> str:
    lines = text.split("\n")
    long = [i for i, line in enumerate(lines) if len(line.encode()) >= 75]
    if not long:
        return text
    line = lines[dice.choice(long)]
    if dice.random() < 0.5:
        return text.replace(line, f"{line}\n{line}", 1)
    for _ in range(3):
        lines.insert(dice.randrange(lines.index(line) + 1, len(lines) + 1), line)
    return "\n".join(lines)


def symbols(text: str, dice: random.Random) -> str:
    return "".join(f"{dice.choice(('| --- ', '=====', ' > > ', '*·~^'))}{text[i : i + 2]}" for i in range(0, 60, 2))


def digits(dice: random.Random, count: int) -> str:
    return "".join(dice.choices("0123456789", k=count))


def api_key(dice: random.Random) -> str:
    prefix, length, alphabet = dice.choice(KEYS)
    tail = "".join(dice.choices(alphabet, k=length))
    if prefix.startswith("eyJ"):
        tail = f"{tail[:20]}.eyJ{tail[20:]}.{tail[:30]}"
    return prefix + tail


def id_number(dice: random.Random) -> str:
    kind = dice.randrange(3)
    if kind == 0:
        born = f"{dice.randint(1940, 2015)}{dice.randint(1, 12):02}{dice.randint(1, 28):02}"
        number = f"{dice.randint(110000, 659000)}{born}{digits(dice, 3)}"
        weights = [2 ** (17 - i) % 11 for i in range(17)]
        return number + "10X98765432"[sum(w * int(d) for w, d in zip(weights, number, strict=True)) % 11]
    if kind == 1:
        return f"{dice.randint(100, 665)}-{dice.randint(1, 99):02}-{dice.randint(1, 9999):04}"
    number = dice.choice(("4", "51", "55", "62")) + digits(dice, 15)
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(number[:15]))
    number = number[:15] + str(-total % 10)
    return number if dice.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, 16, 4))


def contact(dice: random.Random) -> str:
    name = "".join(dice.choices("abcdefghij", k=8))
    area = dice.choice(("010", "021", "0755"))
    return dice.choice(
        (
            f"{name}@{name}.com",
            f"{name}.{digits(dice, 2)}@mail.{name}.edu.cn",
            f"1{dice.choice('3578')}{digits(dice, 9)}",
            f"+86 13{digits(dice, 1)} {digits(dice, 4)} {digits(dice, 4)}",
            f"{area}-{dice.randint(20000000, 89999999)}",
            f"({dice.randint(201, 989)}) {dice.randint(201, 989)}-{digits(dice, 4)}",
            f"+44 20 {digits(dice, 4)} {digits(dice, 4)}",
        )
    )


FAULTS = {
    "mojibake (cp1252, whole text)": misread("sloppy-windows-1252", True),
    "mojibake (cp1252, one line)": misread("sloppy-windows-1252", False),
    "mojibake (latin-1, whole text)": misread("latin-1", True),
    "mojibake (latin-1, one line)": misread("latin-1", False),
    "mojibake (GBK, whole text)": misread("gbk", True),
    "mojibake (GBK, one line)": misread("gbk", False),
    "nfc": lambda text, dice: unicodedata.normalize("NFD", text),
    "invisible": unseen,
    "last_question": None,
    "api_keys": api_key,
    "id_numbers": id_number,
    "contacts": contact,
    "boilerplate": lambda text, dice: f"{text}\n{FOOTER}",
    "repeated_lines": repeated,
    "refusals": lambda text, dice: dice.choice(REFUSALS),
    "too_short": lambda text, dice: text[: dice.randint(3, 15)],
    "too_many_symbols": symbols,
}
SECRETS = ("api_keys", "id_numbers", "contacts")
KINDS = {"last_question": list, "refusals": list, "boilerplate": str, "too_short": str, "too_many_symbols": str}


def plant(name: str, content: Content, dice: random.Random) -> tuple[Content, Content, str]:
    """Return a row with a fault, the row as it has to be again, and a secret that has to be gone."""
    if name == "last_question":
        return [*content, {"role": "user", "content": "那么然后呢？"}], content, ""
    messages = [{"role": "assistant", "content": content}] if isinstance(content, str) else list(content)
    place = dice.choice([i for i, message in enumerate(messages) if message["role"] == "assistant"])
    text, secret = messages[place]["content"], ""
    if name == "nfc":
        text = insert(text, dice.choice(ACCENTS), dice)
    if name in SECRETS:
        secret = FAULTS[name](dice)
        faulty = insert(text, dice.choice((f" {secret} ", f"：{secret}，", f'"{secret}"')), dice)
    else:
        faulty = FAULTS[name](text, dice)
    if isinstance(content, str):
        return faulty, text, secret
    good, faulty = ([*messages[:place], messages[place] | {"content": side}] for side in (text, faulty))
    return faulty + messages[place + 1 :], good + messages[place + 1 :], secret


def find(rows: list[Content], name: str, dice: random.Random) -> tuple[int, int]:
    """Return how many of the faults are found, and how many are put in."""
    rule, lines = name.partition(" ")[0], frozenset()
    if name == "boilerplate":
        sample = LineSample()
        for number in range(100):
            sample.add(f"{number}\n{FOOTER}")
        lines = sample.boilerplate()
    found = planted = 0
    for content in dice.sample(rows, len(rows)):
        if planted == MAX_FAULTS:
            break
        if not isinstance(content, KINDS.get(name, (str, list))) or CODE_RE.search(render(content)):
            continue
        faulty, good, secret = plant(name, content, dice)
        if faulty == good or clean(good, {rule}, lines).content != good:
            continue
        planted += 1
        after = clean(faulty, {rule}, lines).content
        if secret:
            found += secret not in render(after or "")
        elif isinstance(after, list):  # the other turns stay
            found += all(message in good for message in after)
        else:
            found += after in (None, good)
    return found, planted


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="JSONL files of intact rows")
    parser.add_argument("--changes", type=Path, metavar="FILE", help="JSONL of what the rules change in them (none)")
    args = parser.parse_args(argv)
    rows = list(read_rows(args.data))
    dice = random.Random(1)
    print("| fault | put in | found |\n|---|---|---|")
    for name in FAULTS:
        found, planted = find([content for _, content in rows], name, dice)
        print(f"| {name} | {planted} | {found} |", flush=True)
    if args.changes:
        write_changes(rows, args.changes)


def write_changes(rows: list[tuple[str, Content]], path: Path) -> None:
    """Write what each rule alone does to the rows, and print how many it changes and drops."""
    with open(path, "w", encoding="utf-8") as file:
        for rule in (rule for rule in RULES if rule.apply):
            counts = [0, 0]
            for name, content in rows:
                cleaned = clean(content, {rule.name})
                if cleaned.dropped_by or cleaned.edits:
                    counts[not cleaned.content] += 1
                    edit = cleaned.edits.get(rule.name, (render(content)[:200], "dropped"))
                    file.write(json.dumps([rule.name, name, *edit], ensure_ascii=False) + "\n")
            print(f"{rule.name}: {counts[0]} rows changed, {counts[1]} dropped", flush=True)


if __name__ == "__main__":
    main()
