"""A log holds every step once, also after a crash."""

import json

import pytest

from engine.log.tracker import Tracker
from engine.options import Output


@pytest.fixture
def output(tmp_path):
    return Output(save_dir=str(tmp_path), name="run")


def steps(output) -> list[int]:
    return [json.loads(line)["step"] for line in output.metrics.read_text("utf-8").splitlines()]


def test_rows_after_the_last_state_of_a_killed_run_are_removed(output):
    before = Tracker(output, {}, steps=9)
    for step in (2, 4, 6):
        before.log({"step": step, "loss": 1.0})
    again = Tracker(output, {}, steps=9, step=5)
    assert steps(output) == [2, 4]
    again.log({"step": 6, "loss": 1.0})
    assert steps(output) == [2, 4, 6]
