"""Mutants as data: one .toml file for each part of the repository, in tests/mutation/mutants.

    [[mutant]]
    name = "the future is visible"
    file = "model.py"
    old = 'is_causal=mask is None'      # occurs exactly once in the file
    new = 'is_causal=False'
    tests = "tests/test_model.py"       # the file (or one test of it) that has to fail
    story = "What would go wrong for a user, in a sentence or two."

Each is silent: the program still runs, and its results are wrong.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("mutants")


@dataclass(frozen=True)
class Mutant:
    """A mistake that is easily made."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    story: str

    def apply(self, root: Path = ROOT) -> str:
        """Return the text of the mutated file; ValueError unless `old` occurs exactly once in it."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name!r}: `old` occurs {count} times in {self.file}, expected once: {self.old!r}")
        return text.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    """Read the mutants in the order of the files' names."""
    mutants = []
    for path in sorted(FOLDER.glob("*.toml")):
        mutants += tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**mutant) for mutant in mutants]


def of_day(mutants: list[Mutant], day: int, count: int = 12) -> list[Mutant]:
    """Select `count` of them, others each day of the month; all are selected within len(mutants) / count days."""
    first = (day - 1) * count
    return [mutants[number % len(mutants)] for number in range(first, first + count)]
