"""The planted mutants fit the tree as it is; make test-mutants plants them."""

import ast
from collections import Counter

import pytest
from mutant import ROOT, Mutant, all_mutants, of_day

MUTANTS = all_mutants()
OFTEN_TESTED = ("model.py", "engine/loss.py", "engine/packing.py")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted_and_would_run(mutant):
    text = mutant.planted()
    assert mutant.old != mutant.new and mutant.story.strip()
    if mutant.file.endswith(".py"):
        ast.parse(text)
    file, _, test = mutant.tests.partition("::")
    assert (ROOT / file).is_file()
    assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_there_are_eighty_in_all_rooms_each_with_a_name_of_its_own():
    assert len(MUTANTS) >= 80
    assert sum(mutant.file not in OFTEN_TESTED for mutant in MUTANTS) >= 40
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert max(Counter((mutant.file, mutant.old, mutant.new) for mutant in MUTANTS).values()) == 1


def test_a_text_that_stands_nowhere_or_twice_is_refused():
    mutant = {"name": "f", "file": "model.py", "new": "", "tests": "", "story": ""}
    for old, times in (("nowhere in it", "0"), ("self.", "[1-9]\\d+")):
        with pytest.raises(ValueError, match=f"stands {times} times in model.py"):
            Mutant(old=old, **mutant).planted()


def test_each_has_its_day_of_the_month():
    days = [of_day(MUTANTS, day) for day in range(1, 32)]
    assert {mutant for day in days for mutant in day} == set(MUTANTS)
    assert all(len(set(day)) == 10 for day in days) and days[0] != days[1]
