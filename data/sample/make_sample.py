"""Write the sample corpus: one small town told in four kinds of training data.

Every stage has something that it alone can teach, so that each can be measured:
  pretrain   the facts of the town, the style in which they are told, and how sums are worked out
  sft_512    answering questions about those facts and following instructions
  sft_1024   answering beyond position 512, from evidence near by or far back
  r1_1024    thinking before the answer: a problem step by step, a question by what is known
The three chat files also hold greetings, and questions beyond the town with an honest no: what a
later stage does not repeat is forgotten.
Each has a held-out file that asks for things never asked for in training; everyday_heldout holds
greetings and questions beyond the town in new words, talks_heldout asks questions of every kind in
one conversation, and choices_heldout asks for the held-out facts with four choices. The same
seed gives the same bytes everywhere: no clock, no locale, no hash order, no tokenizer.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from dialogues import (
    Row,
    choice_rows,
    held_question_rows,
    instruction_row,
    long_row,
    question_rows,
    recall_row,
    row,
    turns,
)
from reasoning import draw_problem
from texts import FOLK, PRETRAIN_KINDS, is_held
from visits import (
    cannot_reckon,
    everyday_heldout,
    everyday_rows,
    in_talks,
    mixed_row,
    talks_heldout,
    thinking_rows,
    thought,
)

Rows = tuple[list[Row] | None, list[Row]]  # of a stage: to train on, held out

PRETRAIN_BYTES = {
    "bio": 200_000,
    "story": 110_000,
    "diary": 30_000,
    "recipe": 25_000,
    "town": 20_000,
    "counting": 30_000,
    "sums": 110_000,
    "columns": 270_000,
    "comparing": 70_000,
    "neighbours": 35_000,
    "storing": 30_000,
    "glossary": 20_000,
    "bio_en": 120_000,
    "story_en": 20_000,
}
LONG_SIZE = (1250, 1550)  # bytes of small talk in a long conversation
TALKED = 3200  # of the rows that think, those that stand in conversations of several turns


def size_of(line: Row) -> int:
    return len(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()) + 1


def fresh(make: Callable, rng: Random, held: bool, seen: set[str]) -> Iterator:
    """Endless new rows of one kind, skipping every row that was made before."""
    number = 0
    while True:
        made = make(rng, held, number)
        text = json.dumps(made, ensure_ascii=False)
        number += 1
        if text not in seen:
            seen.add(text)
            yield made


def pretrain(rng: Random) -> Rows:
    """Texts of every kind, each kind up to its share of bytes, shuffled."""
    train, heldout, seen = [], [], set()
    for make in PRETRAIN_KINDS:
        rows, size = fresh(make, rng, False, seen), 0
        while size < PRETRAIN_BYTES[make.__name__]:
            train.append({"text": next(rows)})
            size += size_of(train[-1])
        rows = fresh(make, rng, True, seen)
        heldout += [{"text": next(rows), "task": make.__name__} for _ in range(15)]
    rng.shuffle(train)
    return train, heldout


def sft_512(rng: Random) -> Rows:
    """Questions, instructions and notes recalled at short distance."""
    seen = set()
    train, heldout = question_rows(rng), held_question_rows(rng)
    for make, count, held_count in ((instruction_row, 800, 80), (recall_row, 360, 40)):
        for rows, held, wanted in ((train, False, count), (heldout, True, held_count)):
            source = fresh(make, rng, held, seen)
            rows += [next(source) for _ in range(wanted)]
    train += everyday_rows(rng, times=3, noes=360, digits=40) + [mixed_row(rng) for _ in range(160)]
    train += [cannot_reckon(rng) for _ in range(60)]
    rng.shuffle(train)
    return train, heldout


def sft_1024(rng: Random) -> Rows:
    """Long conversations with a note to remember, from far back or near by, and short ones, not to forget them."""
    train, heldout = (
        [long_row(rng, held, number, LONG_SIZE) for number in range(count)]
        for held, count in ((False, 180), (True, 48))
    )
    train += question_rows(rng)[:700] + everyday_rows(rng, times=1, noes=180, digits=20)
    train += [mixed_row(rng) for _ in range(80)] + [cannot_reckon(rng) for _ in range(20)]
    rng.shuffle(train)
    return train, heldout[:44]  # cut, so that no other row changes: all files stay below five megabytes


def problem_rows(rng: Random, count: int, held: bool, seen: set[str], shares: tuple[int, ...]) -> list[Row]:
    """Problems with their chain of thought; no operands twice, the held-out ones told by their key."""
    rows = []
    while len(rows) < count:
        task, key, question, words, answer = draw_problem(rng, FOLK, shares)
        if key not in seen and is_held(key, 10) == held:
            seen.add(key)
            rows.append(row([question, thought(words, answer)], **({"task": task, "answer": answer} if held else {})))
    return rows


def r1_1024(rng: Random) -> Rows:
    """Problems, and the questions of the earlier stages, all answered after a thought."""
    seen = set()
    heldout = problem_rows(rng, 150, True, seen, (45, 36, 7, 4, 8))
    train = problem_rows(rng, 4000, False, seen, (20, 20, 22, 12, 26)) + thinking_rows(rng)
    rng.shuffle(train)
    train = in_talks(rng, train[:TALKED]) + train[TALKED:]
    rng.shuffle(train)
    return train, heldout


def talks(rng: Random) -> Rows:
    """Nothing to train on: held-out questions of four kinds, one after the other in one conversation."""
    problems = problem_rows(rng, 30, True, set(), (45, 36, 7, 4, 8))
    return None, talks_heldout(rng, [turns(problem) for problem in problems])


def everyday(rng: Random) -> Rows:
    """Nothing to train on in a file of its own: greetings and honest noes stand in every chat stage's file."""
    return None, everyday_heldout(rng)


def choices(rng: Random) -> Rows:
    """Nothing to train on: multiple choice is for scoring."""
    return None, choice_rows(rng)


def main(argv: list[str] | None = None) -> None:
    """Write all eleven files into one folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    for seed, make in enumerate((pretrain, sft_512, sft_1024, r1_1024, choices, everyday, talks)):
        for rows, ending in zip(make(Random(seed)), ("", "_heldout"), strict=True):
            if rows is None:
                continue
            lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in rows]
            path = folder / f"{make.__name__}{ending}.jsonl"
            path.write_bytes("".join(lines).encode())
            print(f"{path.name}: {len(lines)} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
