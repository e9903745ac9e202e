"""Plant near-copies and leaked held-out rows in the rows of a folder, and count which ones are found.

    python -m benchmarks.repeats --data FOLDER                # all its *.jsonl; texts and conversations apart
    python -m benchmarks.repeats --data FOLDER --natural 200  # and show what is found and was not planted, to be read

Copies of a tenth of the rows: words swapped, cut, joined with another row's text, other punctuation, in traditional
characters. The similarity of each copy is measured, with the shingles that the search uses.
"""

import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from opencc import OpenCC

from benchmarks import compare
from dataset import PretrainDataset, SFTDataset
from engine.corpus.held_out import row_hash
from engine.corpus.jsonl import parse_line, read_lines
from engine.corpus.repeats import (
    MIN_CONTAINED_CHARACTERS,
    HeldOut,
    Repeats,
    find_repeats,
    read_content,
    row_text,
    similarity,
)
from engine.corpus.shingles import sign_many

BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PUNCTUATION = "，。！？、；：,.!?;:-\"'()（）“”"
WORD = re.compile(r"[^\W\d]+")  # two numbers that change places ask another question


def swap(text: str, rng: random.Random) -> str:
    """Swap neighboring words, or pairs of characters, at some places."""
    parts = re.findall(r"[^\W\d_a-zA-Z]{2}|\w+|\W+", text)
    words = [place for place, part in enumerate(parts) if WORD.fullmatch(part)]
    for _ in range(1 + int(len(words) * rng.uniform(0, 0.08))):
        if len(words) > 1:
            place = rng.randrange(len(words) - 1)
            first, second = words[place : place + 2]
            parts[first], parts[second] = parts[second], parts[first]
    return "".join(parts)


def cut(text: str, rng: random.Random) -> str:
    size = int(len(text) * rng.uniform(0.5, 0.99))
    start = rng.randrange(len(text) - size + 1)
    return text[start : start + size]


def join(text: str, rng: random.Random, other: str) -> str:
    part = other[: int(len(text) * rng.uniform(0.01, 0.8))]
    return f"{text}\n{part}" if rng.random() < 0.5 else f"{part}\n{text}"


def punctuate(text: str, rng: random.Random) -> str:
    return "".join(rng.choice(f" {PUNCTUATION}") if letter in PUNCTUATION else letter for letter in text)


def read_rows(folder: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {"texts": [], "conversations": []}
    for path in sorted(folder.glob("*.jsonl")):
        for _, line in read_lines(path):
            row = parse_line(line)
            if SFTDataset.holds(row):
                rows["conversations"].append(row_text(SFTDataset.read(row)))
            else:
                rows["texts"].append(row_text(PretrainDataset.read(row)))
    return rows


def find(texts: list[str]) -> Repeats:
    hashes = np.array([row_hash(text) for text in texts], np.uint64)
    return find_repeats(hashes, sign_many(texts), np.array([len(text) for text in texts]), texts.__getitem__)


def ways_of(texts: list[str], rng: random.Random) -> dict[str, Callable[[str], str]]:
    """Return the ways to copy a text that is one of `texts`."""
    traditional = OpenCC("s2tw").convert
    return {
        "equal": lambda text: text,
        "swapped": lambda text: swap(text, rng),
        "cut": lambda text: cut(text, rng),
        "joined": lambda text: join(text, rng, rng.choice(texts)),
        "punctuation": lambda text: punctuate(text, rng),
        "traditional": traditional,
        "cut, the rest": lambda text: traditional(punctuate(cut(swap(text, rng), rng), rng)),
    }


def bin_of(copy: str, text: str) -> int:
    similar = 1.0 if copy == text else similarity(read_content(copy), read_content(text))
    return int(np.searchsorted(BINS, similar, "right")) - 1


def table_of(name: str, outcomes: list[tuple[str, int, bool]]) -> list[str]:
    """Tabulate (way, bin, is found): how many are found of how many."""
    names = [f"{low}-{high}" for low, high in pairwise(BINS)]
    table = [[name, *names, "1"]]
    for way in dict.fromkeys(way for way, _, _ in outcomes):
        cells = [[hit for *key, hit in outcomes if key == [way, column]] for column in range(len(BINS))]
        table.append([way, *(f"{sum(cell):,} of {len(cell):,}" if cell else "" for cell in cells)])
    cells = [[hit for _, place, hit in outcomes if place == column] for column in range(len(BINS))]
    table.append(["all", *(f"{np.mean(cell):.1%}" if cell else "" for cell in cells)])
    return compare.table(table)


def measure_copies(texts: list[str], rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a table of copies that are found, and the pairs (dropped, kept) that were not planted."""
    ways = ways_of(texts, rng)
    copies = [(way, number, ways[way](texts[number])) for way, number in drawn(texts, ways, rng)]
    rows = texts + [copy for _, _, copy in copies]
    source = [*range(len(texts)), *(number for _, number, _ in copies)]
    repeats = find(rows)
    outcomes = []
    for row, (way, number, copy) in enumerate(copies, len(texts)):
        outcomes.append((way, bin_of(copy, texts[number]), not repeats.keep[[row, number]].all()))
    dropped = [(row, repeats.kept_row[row]) for row in np.flatnonzero(~repeats.keep)]
    natural = [(rows[row], rows[kept]) for row, kept in dropped if source[row] != source[kept]]
    return table_of("repeats found", outcomes), natural


def drawn(texts: list[str], ways: dict, rng: random.Random) -> list[tuple[str, int]]:
    """Return (way, number of a row) for a tenth of the rows, each way as often."""
    numbers = rng.sample(range(len(texts)), len(texts) // 10)
    return [(list(ways)[place % len(ways)], number) for place, number in enumerate(numbers)]


def measure_leaks(texts: list[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """Return a table of leaked held-out rows that are found, and the rows that are called leaked and were not."""
    shuffled = rng.sample(texts, len(texts))
    held_out, rest = shuffled[: len(texts) // 10], shuffled[len(texts) // 10 :]
    ways = ways_of(rest, rng)
    ways |= {"contained": lambda text: f"{rng.choice(rest)[:400]}\n{text}\n{rng.choice(rest)[:400]}"}
    index = HeldOut(held_out)
    outcomes = []
    for way, number in drawn(held_out * 10, ways, rng):
        text = held_out[number % len(held_out)]
        if len(text) >= MIN_CONTAINED_CHARACTERS or way != "contained":
            copy = ways[way](text)
            outcomes.append((way, bin_of(copy, text), bool(index.reason(copy))))
    reasons = index.reasons(rest)
    return table_of("leaks found", outcomes), [text for text, reason in zip(rest, reasons, strict=True) if reason]


def measure_speed(texts: list[str]) -> list[str]:
    """Return a table of seconds for 100 MB on one core."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    index = HeldOut(texts[::20])
    steps = {
        "sign": lambda: sign_many(texts),
        "sign and find": lambda: find(texts),
        "held out": lambda: index.reasons(texts),
    }
    table = [["step", "seconds for 100 MB"]]
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        table.append([name, f"{(time.perf_counter() - start) / megabytes * 100:.1f}"])
    return compare.table(table)


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL files")
    parser.add_argument("--natural", type=int, default=0, help="pairs and rows to show that were not planted (0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the planted copies")
    args = parser.parse_args(argv)
    for kind, texts in read_rows(args.data).items():
        rng = random.Random(args.seed)
        copies, pairs = measure_copies(texts, rng)
        leaks, rows = measure_leaks(texts, rng)
        print(f"\n{kind}: {len(texts):,} rows, {len(pairs)} repeats and {len(rows)} leaks that were not planted\n")
        print(*copies, "", *leaks, "", *measure_speed(texts), sep="\n")
        for pair in rng.sample(pairs, min(args.natural, len(pairs))):
            print("\ndropped", pair[0], "kept", pair[1], sep="\n")
        for row in rng.sample(rows, min(args.natural, len(rows))):
            print("\nleak", row, sep="\n")


if __name__ == "__main__":
    main()
