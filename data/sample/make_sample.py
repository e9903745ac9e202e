"""Write the sample corpus: one small town told in four kinds of training data.

Every stage has something that it alone can teach, so that each can be measured:
  pretrain   the facts of the town and the style in which they are told
  sft_512    answering questions about those facts and following instructions
  sft_1024   answering beyond position 512, from evidence near by or far back
  r1_1024    reasoning step by step before the answer
Each has a held-out file that asks for things never asked for in training, and
choices_heldout asks for the held-out facts with four choices.  The same
seed gives the same bytes everywhere: no clock, no locale, no hash order, no tokenizer.
"""

import argparse
import json
import random
from pathlib import Path

from dialogues import choice_rows, held_question_rows, instruction_row, long_row, question_rows, recall_row, row
from reasoning import draw_problem
from texts import FOLK, PRETRAIN_KINDS, is_held

PRETRAIN_BYTES = {
    "bio": 190_000,
    "story": 140_000,
    "diary": 30_000,
    "recipe": 25_000,
    "town": 20_000,
    "counting": 40_000,
    "sums": 110_000,
    "neighbours": 20_000,
    "storing": 100_000,
    "glossary": 20_000,
    "bio_en": 120_000,
    "story_en": 20_000,
}
LONG_SIZE = (1250, 1550)  # bytes of small talk in a long conversation


def size_of(line):
    return len(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()) + 1


def fresh(make, rng, held, seen):
    """Endless new rows of one kind, skipping every row that was made before."""
    number = 0
    while True:
        made = make(rng, held, number)
        text = json.dumps(made, ensure_ascii=False)
        number += 1
        if text not in seen:
            seen.add(text)
            yield made


def pretrain(rng):
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


def sft_512(rng):
    """Questions, instructions and notes recalled at short distance."""
    seen = set()
    train, heldout = question_rows(rng), held_question_rows(rng)
    for make, count, held_count in ((instruction_row, 800, 80), (recall_row, 360, 40)):
        for rows, held, wanted in ((train, False, count), (heldout, True, held_count)):
            source = fresh(make, rng, held, seen)
            rows += [next(source) for _ in range(wanted)]
    rng.shuffle(train)
    return train, heldout


def sft_1024(rng):
    """Long conversations with a note to remember, from far back or near by."""
    return tuple(
        [long_row(rng, held, number, LONG_SIZE) for number in range(count)]
        for held, count in ((False, 180), (True, 48))
    )


def r1_1024(rng, count=5000, held_count=150):
    """Problems with their chain of thought; no operands twice, the held-out ones by their key."""
    train, heldout, seen = [], [], set()
    while len(train) < count or len(heldout) < held_count:
        task, key, question, thought, answer = draw_problem(rng, FOLK)
        rows, wanted = (heldout, held_count) if is_held(key, 10) else (train, count)
        if key not in seen and len(rows) < wanted:
            seen.add(key)
            content = f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"
            rows.append(row([question, content], **({"task": task, "answer": answer} if rows is heldout else {})))
    return train, heldout


def choices(rng):
    """Nothing to train on: multiple choice is for scoring."""
    return None, choice_rows(rng)


def main(argv=None):
    """Write all nine files into one folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    for seed, make in enumerate((pretrain, sft_512, sft_1024, r1_1024, choices)):
        for rows, ending in zip(make(random.Random(seed)), ("", "_heldout"), strict=True):
            if rows is None:
                continue
            lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in rows]
            path = folder / f"{make.__name__}{ending}.jsonl"
            path.write_bytes("".join(lines).encode())
            print(f"{path.name}: {len(lines)} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
