"""Planted faults as data: one .toml file for each part of the house, in tests/plant/faults.

    [[fault]]
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
FOLDER = Path(__file__).with_name("faults")


@dataclass(frozen=True)
class Fault:
    """One mistake that somebody might make."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    story: str

    def planted(self, root: Path = ROOT) -> str:
        """The file's text with the fault in it; ValueError where `old` does not stand there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name!r}: `old` stands {count} times in {self.file}, expected once: {self.old!r}")
        return text.replace(self.old, self.new)


def all_faults() -> list[Fault]:
    """In the order of the files' names and of the faults in them."""
    files = sorted(FOLDER.glob("*.toml"))
    return [Fault(**fault) for path in files for fault in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]]


def of_day(faults: list[Fault], day: int, count: int = 10) -> list[Fault]:
    """`count` of them, others each day of the month: all have had their turn after len(faults) / count days."""
    first = (day - 1) * count
    return [faults[number % len(faults)] for number in range(first, first + count)]
