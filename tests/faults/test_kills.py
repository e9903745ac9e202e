"""A run that is killed, at any moment or before any write of a save, ends with the same bits once it is resumed."""

import os
import random
import shutil
import signal
import time
from functools import partial

import pytest
from forked import die_before_write, differences, pause_at, run_stage, start_paused, start_stage

EVERYTHING = bool(os.environ.get("ALL_FAULTS"))
TRIES = 20 if EVERYTHING else 1


def killed_and_resumed(stage, argv, home, name, moment) -> list[str]:
    """kill -9 after `moment` seconds, resume; what differs from the undisturbed run."""
    folder = home / name
    while True:
        process = start_stage(home, *argv, "--save_dir", name, "--resume", stage=stage)
        time.sleep(moment)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            break
        assert process.exitcode == 0  # it was faster than the one that was timed
        shutil.rmtree(folder)
        moment *= 0.7
    done = run_stage(home, *argv, "--save_dir", name, "--resume", stage=stage)
    assert done.code == 0, done.output
    lost = differences(home / "whole", folder, stage)
    shutil.rmtree(folder)
    return lost


@pytest.mark.parametrize("stage", ["pretrain", "SFT", "distill"])
def test_a_run_killed_at_a_random_moment_ends_as_if_it_had_not_been(stage, home, undisturbed):
    argv, _, length = undisturbed[stage]
    moments = random.Random(stage)
    for number in range(TRIES):
        moment = moments.uniform(0.1, 0.95) * length
        assert not killed_and_resumed(stage, argv, home, f"killed-{stage}", moment), f"try {number}, {moment:.2f} s"


def test_a_run_killed_before_any_write_of_its_saves_loses_nothing(home, undisturbed):
    """Every fsync, rename and removal in turn; in the short suite a few of them."""
    argv, whole, _ = undisturbed["pretrain"]
    argv = [*argv, "--max_steps", "9"]
    assert run_stage(home, *argv, "--save_dir", "nine").code == 0
    points = range(1, 200) if EVERYTHING else range(9, 200, 28)
    for tried, number in enumerate(points):
        options = [*argv, "--save_dir", "dying", "--resume"]
        done = run_stage(home, *options, prepare=partial(die_before_write, number))
        if done.code == 0:
            assert tried > (30 if EVERYTHING else 2)  # the points really were there
            break
        assert done.code == -signal.SIGKILL, done.output
        again = run_stage(home, *options)
        assert again.code == 0 and not differences(home / "nine", home / "dying"), again.output
        shutil.rmtree(home / "dying")
    print(f"killed before each of {tried} writes")


def test_a_second_ctrl_c_stops_at_once_and_the_last_state_is_good(home, undisturbed):
    argv, whole, _ = undisturbed["pretrain"]
    options = [*argv, "--save_dir", "twice", "--resume"]
    process = start_paused(home, *options, prepare=partial(pause_at, "train_step", 7))
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # it would finish the step
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 130
    assert run_stage(home, *options).code == 0
    assert not differences(whole, home / "twice")
