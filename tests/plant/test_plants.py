"""The planted faults fit the tree as it is; make test-planted plants them."""

import ast
from collections import Counter

import pytest
from fault import ROOT, Fault, all_faults, of_day

FAULTS = all_faults()
OFTEN_TESTED = ("model.py", "engine/loss.py", "engine/packing.py")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_would_run(fault):
    text = fault.planted()
    assert fault.old != fault.new and fault.story.strip()
    if fault.file.endswith(".py"):
        ast.parse(text)
    file, _, test = fault.tests.partition("::")
    assert (ROOT / file).is_file()
    assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_there_are_eighty_in_all_rooms_each_with_a_name_of_its_own():
    assert len(FAULTS) >= 80
    assert sum(fault.file not in OFTEN_TESTED for fault in FAULTS) >= 40
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert max(Counter((fault.file, fault.old, fault.new) for fault in FAULTS).values()) == 1


def test_a_text_that_stands_nowhere_or_twice_is_refused():
    fault = {"name": "f", "file": "model.py", "new": "", "tests": "", "story": ""}
    for old, times in (("nowhere in it", "0"), ("self.", "[1-9]\\d+")):
        with pytest.raises(ValueError, match=f"stands {times} times in model.py"):
            Fault(old=old, **fault).planted()


def test_each_has_its_day_of_the_month():
    days = [of_day(FAULTS, day) for day in range(1, 32)]
    assert {fault for day in days for fault in day} == set(FAULTS)
    assert all(len(set(day)) == 10 for day in days) and days[0] != days[1]
