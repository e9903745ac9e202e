"""Planted mutants as data: one .toml file for each part of the house, in tests/mutation/mutants.

    [[mutant]]
    name = "the future is visible"
    file = "model.py"
    old = 'is_causal=mask is None'      # stands there exactly once
    new = 'is_causal=False'
    tests = "tests/test_model.py"       # the file (or one test of it) that has to notice
    story = "What would go wrong for a user, in a sentence or two."

Each is silent: the program runs on, and what it makes is wrong.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("mutants")


@dataclass(frozen=True)
class Mutant:
    """One mistake that somebody might make."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    story: str

    def planted(self, root: Path = ROOT) -> str:
        """The file's text with the mutant in it; ValueError where `old` does not stand there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name!r}: `old` stands {count} times in {self.file}, expected once: {self.old!r}")
        return text.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    """In the order of the files' names and of the mutants in them."""
    files = sorted(FOLDER.glob("*.toml"))
    return [Mutant(**mutant) for path in files for mutant in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]


def of_day(mutants: list[Mutant], day: int, count: int = 10) -> list[Mutant]:
    """`count` of them, others each day of the month: all have had their turn after len(mutants) / count days."""
    first = (day - 1) * count
    return [mutants[number % len(mutants)] for number in range(first, first + count)]
