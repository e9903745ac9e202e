"""One run a name: a second start changes nothing, and what --overwrite replaces is never taken for the new run."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import nullcontext
from functools import partial

import pytest
from forked import (
    die_before_json,
    die_before_write,
    differences,
    finish,
    forbid_rmtree,
    pause_at,
    run_stage,
    signal_at,
    start_paused,
    weight_bytes,
)

from engine import options
from engine.stage import lock, resume


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_second_start_of_a_name_is_refused(home, tmp_path):
    first = start_paused(home, "--save_dir", str(tmp_path), prepare=partial(pause_at, "write", 1))
    for how in ([], ["--overwrite"], ["--resume"]):
        second = run_stage(home, "--save_dir", str(tmp_path), *how)
        assert second.code == 2 and f"process {first.pid} on " in second.output, second.output
    (home / "continue").touch()
    done = finish(first)
    assert done.code == 0 and "not saved" not in done.output, done.output
    assert weight_bytes(tmp_path) == weight_bytes(home / "whole")
    assert not (tmp_path / "pretrain.lock").exists()


def test_lock_of_another_machine_is_honored_and_named(tmp_path):
    path = tmp_path / "pretrain.lock"
    left = {"process": os.getpid(), "machine": "node7", "kernel": "another", "since": "2026-01-01 00:00:00"}
    path.write_text(json.dumps(left))
    with (
        pytest.raises(ValueError, match=r"pretrain\.lock: process \d+ on node7 .* delete this file"),
        lock.hold_lock(path),
    ):
        pass
    assert json.loads(path.read_text()) == left
    path.unlink()
    with lock.hold_lock(path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()


@pytest.mark.parametrize("left", ["", "{", '{"process": 1', '{"process": "x"}'])
def test_lock_that_a_crash_cut_off_blocks_no_run(left, tmp_path):
    (tmp_path / "a.lock").write_text(left)
    with lock.hold_lock(tmp_path / "a.lock"):
        pass


def test_a_lock_that_cannot_be_removed_names_no_process(tmp_path, monkeypatch):
    """Windows keeps a file that is open somewhere; a name left in it might be of another machine."""

    def in_use(path, **_):
        raise PermissionError(errno.EACCES, "in use", path)

    path = tmp_path / "a.lock"
    with lock.hold_lock(path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is training here"), lock.hold_lock(path):
            pass
        monkeypatch.setattr(os, "unlink", in_use)
    assert path.read_bytes() == b""
    monkeypatch.undo()
    with lock.hold_lock(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_judged_by_the_process_number(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path, ended = tmp_path / "a.lock", subprocess.Popen(["true"])
    ended.wait()
    for process, is_free in ((os.getppid(), False), (ended.pid, True)):
        path.write_text(json.dumps({"process": process}))
        refused = pytest.raises(ValueError, match=f"process {process} .* is training here")
        with nullcontext() if is_free else refused, lock.hold_lock(path):
            pass
    assert not list(tmp_path.iterdir())


def test_weights_of_an_overwritten_run_are_not_the_result(home, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "out")
    here = ["--save_dir", str(tmp_path / "out"), "--learning_rate", "0.02", "--save_step", "0"]
    assert run_stage(home, *here, "--overwrite", prepare=die_before_json).code == 137
    assert run_stage(home, *here, "--resume").code == 0
    assert run_stage(home, *here[2:], "--save_dir", str(tmp_path / "calm")).code == 0
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "calm") != weight_bytes(home / "whole")
    assert json.loads((tmp_path / "out/pretrain.json").read_text("utf-8"))["flags"]["learning_rate"] == 0.02


@pytest.mark.parametrize(
    "flags",
    [
        ["--overwrite", "--warmup_iters", "10"],
        [],
        ["--resume", "{}/pretrain.state/00000003", "--learning_rate", "0.5"],
        ["--resume", "--seed", "7"],
    ],
)
def test_start_that_is_refused_renames_and_removes_nothing(home, flags, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "out")
    (tmp_path / "out/pretrain.state/00000007.tmp").mkdir()
    (tmp_path / "out/pretrain.state/00000007.tmp/part").touch()
    (tmp_path / "out/pretrain.state/00000009").mkdir()  # damaged
    (tmp_path / "out/pretrain.state/00000009/run.pt").touch()
    before = contents(tmp_path / "out")
    done = run_stage(home, "--save_dir", str(tmp_path / "out"), *(word.format(tmp_path / "out") for word in flags))
    assert done.code == 2 and contents(tmp_path / "out") == before, done.output


def test_damaged_state_is_renamed_when_the_run_resumes(home, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "out")
    (tmp_path / "out/pretrain.state/00000006/run.pt").write_bytes(b"")
    done = run_stage(home, "--save_dir", str(tmp_path / "out"), "--resume")
    assert done.code == 0 and "00000006 is now 00000006.aside1" in done.output, done.output
    assert "resuming after step 3 of 6" in done.output and (tmp_path / "out/pretrain.state/00000006.aside1").is_dir()
    assert not differences(home / "whole", tmp_path / "out")


def test_states_that_overwrite_cannot_delete_are_an_error(home, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "out")
    done = run_stage(home, "--save_dir", str(tmp_path / "out"), "--overwrite", prepare=forbid_rmtree)
    assert done.code == 2 and "pretrain.state" in done.output, done.output
    assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")


def test_file_of_this_name_that_no_run_wrote_is_kept(home, tmp_path):
    (tmp_path / "package.json").write_text('{"name": "shop"}')
    for how in ([], ["--overwrite"], ["--resume"]):
        done = run_stage(home, "--save_dir", str(tmp_path), "--name", "package", *how)
        assert done.code == 2 and "not the .json of a run" in done.output, done.output
    assert (tmp_path / "package.json").read_text() == '{"name": "shop"}'


@pytest.mark.parametrize("ending", [".pth", ".json", ".metrics.jsonl", ".png", ".rows.npy", ".state"])
def test_file_that_a_run_would_replace_is_named(ending, home, tmp_path):
    """Unasked, also where the weights and states next to it were moved away, and for a state that gets a new name."""
    file = tmp_path / f"pic{ending}"
    file.write_text('{"stage": "pretrain"}')
    for how in (None, "auto", str(home / "whole/pretrain.state")):
        output = options.Output(save_dir=str(tmp_path), name="pic", resume=how)
        with pytest.raises(ValueError, match=f"{re.escape(str(file))} exists already.* --name .* --overwrite"):
            resume.find_state(output)
    assert resume.find_state(options.Output(save_dir=str(tmp_path), name="pic", overwrite=True)) is None


def test_lock_file_of_another_program_is_kept(tmp_path):
    for content in ("# This file is automatically @generated by Poetry", '{"nodes": {}}'):
        (tmp_path / "poetry.lock").write_text(content)
        with (
            pytest.raises(ValueError, match=r"poetry.lock is not the lock of a run"),
            lock.hold_lock(tmp_path / "poetry.lock"),
        ):
            pass
        assert (tmp_path / "poetry.lock").read_text() == content


def test_run_killed_before_its_first_state_starts_again(home, tmp_path):
    here = ["--save_dir", str(tmp_path)]
    killed = run_stage(home, *here, prepare=partial(signal_at, "train_step", 3, signal.SIGKILL))
    assert killed.code == -9 and (tmp_path / "pretrain.metrics.jsonl").stat().st_size > 0
    (tmp_path / "pretrain.png").touch()  # a run that ends with an error leaves it, too
    (tmp_path / "pretrain.state/00000003.tmp").mkdir(parents=True)  # and one that was killed in its first save
    done = run_stage(home, *here)
    assert done.code == 0 and not differences(home / "whole", tmp_path), done.output


@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n == 20 else pytest.mark.faults) for n in range(1, 60)])
def test_run_that_overwrites_can_be_killed_between_any_two_files(home, number, tmp_path):
    """It resumes and ends with its own bits, or is refused with a reason and its weights of before are there."""
    shutil.copytree(home / "whole", tmp_path / "out")
    here = ["--learning_rate", "0.02", "--save_dir"]
    if not (home / "calm").exists():
        assert run_stage(home, *here, "calm").code == 0
    killed = run_stage(home, *here, str(tmp_path / "out"), "--overwrite", prepare=partial(die_before_write, number))
    assert killed.code in (0, -9)
    again = run_stage(home, *here, str(tmp_path / "out"), "--resume")
    if again.code == 2:
        assert "belongs to another run" in again.output or "no whole state" in again.output, again.output
        assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")
        again = run_stage(home, *here, str(tmp_path / "out"), "--overwrite")
    assert again.code == 0 and weight_bytes(tmp_path / "out") == weight_bytes(home / "calm"), again.output
