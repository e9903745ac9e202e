"""A run that is killed, at any moment or before any write of a save, ends with the same bits once it is resumed."""

import os
import random
import shutil
import signal
import time

import pytest
from harness import begin, differences, end, go, wait_for

EVERYTHING = bool(os.environ.get("ALL_FAULTS"))
TRIES = 20 if EVERYTHING else 1


def killed_and_resumed(stage, argv, home, name, moment) -> list[str]:
    """kill -9 after `moment` seconds, resume; what differs from the undisturbed run."""
    folder = home / name
    while True:
        process = begin(stage, [*argv, "--save_dir", name, "--resume"], home)
        time.sleep(moment)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            break
        assert process.exitcode == 0  # it was faster than the one that was timed
        shutil.rmtree(folder)
        moment *= 0.7
    done = go(stage, [*argv, "--save_dir", name, "--resume"], home)
    assert done.code == 0, done.said
    lost = differences(home / "whole", folder, stage)
    shutil.rmtree(folder)
    return lost


@pytest.mark.parametrize("stage", ["pretrain", "SFT", "distill"])
def test_a_run_killed_at_a_random_moment_ends_as_if_it_had_not_been(stage, home, undisturbed):
    argv, whole = undisturbed[stage]
    began = time.monotonic()
    assert go(stage, [*argv, "--save_dir", "timed"], home).code == 0
    length = time.monotonic() - began
    shutil.rmtree(home / "timed")
    moments = random.Random(stage)
    for number in range(TRIES):
        moment = moments.uniform(0.1, 0.95) * length
        assert not killed_and_resumed(stage, argv, home, f"killed-{stage}", moment), f"try {number}, {moment:.2f} s"


def test_a_run_killed_before_any_write_of_its_saves_loses_nothing(home, undisturbed):
    """Every fsync, rename and removal in turn. In the short suite those of two saves."""
    argv, whole = undisturbed["pretrain"]
    argv = [*argv, "--max_steps", "9"]
    assert go("pretrain", [*argv, "--save_dir", "nine"], home).code == 0
    points = range(1, 200) if EVERYTHING else range(9, 200, 11)
    for tried, number in enumerate(points):
        options = [*argv, "--save_dir", "dying", "--resume"]
        done = go("pretrain", options, home, "die_before_write", number)
        if done.code == 0:
            assert tried > (30 if EVERYTHING else 2)  # the points really were there
            break
        assert done.code == -signal.SIGKILL, done.said
        again = go("pretrain", options, home)
        assert again.code == 0 and not differences(home / "nine", home / "dying", "pretrain"), again.said
        shutil.rmtree(home / "dying")
    print(f"killed before each of {tried} writes")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_after_a_saved_step_with_code_75_and_says_how_to_go_on(kind, home, undisturbed):
    argv, whole = undisturbed["pretrain"]
    options = [*argv, "--save_dir", "asked", "--resume"]
    process = begin("pretrain", options, home)
    wait_for(home / "asked/pretrain.state/00000003", process)
    os.kill(process.pid, kind)
    done = end(process)
    assert done.code == 75 and f"stopped by {kind.name}" in done.said and "--resume goes on" in done.said, done.said
    again = go("pretrain", options, home)
    assert again.code == 0 and "resuming after step" in again.said
    assert not differences(whole, home / "asked", "pretrain")
    shutil.rmtree(home / "asked")


def test_a_second_ctrl_c_stops_at_once_and_the_last_state_is_good(home, undisturbed):
    argv, whole = undisturbed["pretrain"]
    options = [*argv, "--save_dir", "twice", "--resume"]
    process = begin("pretrain", options, home, "endless_step", 7)
    wait_for(home / "twice/endless", process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # it would finish the step
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 130
    assert go("pretrain", options, home).code == 0
    assert not differences(whole, home / "twice", "pretrain")


def test_a_time_limit_saves_and_stops_with_code_75(home, undisturbed):
    argv, whole = undisturbed["pretrain"]
    options = [*argv, "--save_dir", "limited", "--resume"]
    done = go("pretrain", [*options, "--max_minutes", "1e-9"], home)
    assert done.code == 75 and "stopped by --max_minutes" in done.said and "from step 1" in done.said
    assert go("pretrain", options, home).code == 0
    assert not differences(whole, home / "limited", "pretrain")
