"""The mutants fit the tree as it is; make test-mutants runs their tests."""

import ast
from collections import Counter

import pytest
from mutant import ROOT, Mutant, all_mutants, of_day

MUTANTS = all_mutants()
OFTEN_TESTED = ("model.py", "engine/loss.py", "engine/packing.py")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_apply_and_still_parse(mutant):
    text = mutant.apply()
    assert mutant.old != mutant.new and mutant.story.strip()
    if mutant.file.endswith(".py"):
        ast.parse(text)
    file, _, test = mutant.tests.partition("::")
    assert (ROOT / file).is_file()
    assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_mutants_are_many_in_all_rooms_and_distinct():
    assert len(MUTANTS) >= 80
    assert sum(mutant.file not in OFTEN_TESTED for mutant in MUTANTS) >= 40
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert max(Counter((mutant.file, mutant.old, mutant.new) for mutant in MUTANTS).values()) == 1


def test_old_text_that_is_absent_or_repeated_is_refused():
    mutant = {"name": "f", "file": "model.py", "new": "", "tests": "", "story": ""}
    for old, times in (("nowhere in it", "0"), ("self.", "[1-9]\\d+")):
        with pytest.raises(ValueError, match=f"occurs {times} times in model.py"):
            Mutant(old=old, **mutant).apply()


def test_every_mutant_has_its_day_of_the_month():
    days = [of_day(MUTANTS, day) for day in range(1, 32)]
    assert set().union(*days) == set(MUTANTS)
    assert all(len(set(day)) == 12 for day in days) and days[0] != days[1]
