"""Full disks, forbidden folders and damaged files are reported at once; the run continues and loses no state."""

import os
import shutil
import subprocess
from functools import partial

import pytest
from forked import differences, forbid_states, limit_files, run_stage, skip_disk_check

from engine.checkpoint import training_state
from engine.stage import plan

ALL = bool(os.environ.get("ALL_FAULTS"))


def check_failing_saves(home, argv, prepare, reason: str, name: str) -> None:
    """Let only the first save succeed; with the trouble gone, --resume ends as if there had been none."""
    options = [*argv, "--save_dir", name, "--resume"]
    done = run_stage(home, *options, prepare=prepare)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output and done.output.splitlines()[-1].startswith("error: step 12 was not saved")
    assert "--resume" in done.output.splitlines()[-1] and reason in done.output
    warnings = [line for line in done.output.splitlines() if line.startswith("warning: step 6 was not saved")]
    assert len(warnings) >= 2 and "the run continues" in warnings[0]  # at once, and at the next row of the log
    assert [path.name for path in training_state.list_states(home / name / "pretrain.state")] == ["00000003"]
    assert not list((home / name).rglob("*.tmp*"))
    (home / name / "pretrain.state").chmod(0o755)
    again = run_stage(home, *options)
    assert again.code == 0 and "resuming after step 3 " in again.output, again.output
    assert not differences(home / "whole", home / name)


def test_run_continues_and_warns_when_its_saves_do_not_fit(home, undisturbed):
    check_failing_saves(home, undisturbed["pretrain"][0], partial(limit_files, 2), "File too large", "small")


def test_run_continues_when_its_folder_becomes_forbidden(home, undisturbed):
    if os.getuid() == 0:  # who may write everywhere: the run becomes somebody else
        (home / "forbidden").mkdir(mode=0o777)
        (home / "forbidden").chmod(0o777)
    prepare = partial(forbid_states, "forbidden/pretrain.state", 2)
    check_failing_saves(home, undisturbed["pretrain"][0], prepare, "Permission denied", "forbidden")


@pytest.mark.faults
@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("kilobytes", range(2600, 12000, 1000))
def test_a_disk_that_fills_up_during_a_save_loses_nothing(kilobytes, home, undisturbed):
    """A tmpfs of a few sizes: the weights, a state or the log is what does not fit."""
    argv, whole, _ = undisturbed["pretrain"]
    folder = home / "full"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        options = [*argv, "--save_dir", "full", "--resume"]
        done = run_stage(home, *options, prepare=skip_disk_check)
        assert done.code in (0, 2) and "Traceback" not in done.output, done.output
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        assert run_stage(home, *options).code == 0
        assert not differences(whole, folder)
        print(f"{kilobytes} KiB: exit code {done.code}, {done.output.count('not saved: ')} failed saves")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_too_little_disk_is_an_error_before_the_first_step(home, undisturbed, monkeypatch):
    argv = undisturbed["pretrain"][0]
    needed = plan.disk_needed(1000, keep=2)
    assert needed == 1000 * (2 * 4 + 3 * 12)
    done = run_stage(home, *argv, "--save_dir", "crowded", "--keep", "1000000000")
    assert done.code == 2 and "MiB free, but weights and states need" in done.output and "step/s" not in done.output


def damaged(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_damaged_newest_state_is_named_and_the_one_before_used(how, home, undisturbed, capsys):
    states = undisturbed["pretrain"][1] / "pretrain.state"
    files = [path.relative_to(states) for path in (states / "00000012").rglob("*") if path.is_file()]
    assert len(files) == 4
    for file in files:
        copy = home / "damaged.state"
        shutil.copytree(states, copy)
        damaged(copy / file, how)
        assert training_state.find_newest(copy).name == "00000009", file
        assert f"{copy / '00000012'} is damaged" in capsys.readouterr().err
        assert (copy / "00000012").is_dir()  # looking changes nothing
        shutil.rmtree(copy)


def test_the_newest_states_are_kept_and_no_more(home, undisturbed):
    argv, whole, _ = undisturbed["pretrain"]
    assert [path.name for path in training_state.list_states(whole / "pretrain.state")] == ["00000009", "00000012"]
    assert run_stage(home, *argv, "--save_dir", "three", "--keep", "3").code == 0
    assert len(training_state.list_states(home / "three/pretrain.state")) == 3
