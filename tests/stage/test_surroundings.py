"""A run survives its surroundings: signals, closed outputs, full disks and numbers that are not finite."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from forked import (
    PHASES,
    finish,
    forbid_folder_sync,
    forbid_rmtree,
    forbid_shared_memory,
    ignore_hangup,
    run_stage,
    start_paused,
    weight_bytes,
)

SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"]
QUICK = [
    ("SIGTERM", "in_cache"),
    ("SIGHUP", "before_step_1"),
    ("SIGQUIT", "in_step"),
    ("SIGINT", "in_step"),
    ("SIGUSR1", "in_step"),
    ("SIGUSR2", "in_save"),
    ("SIGXCPU", "in_validation"),
]


def stopped_and_resumed(home, kind, phase, tmp_path, stdout=""):
    """Stop a run by a signal in `phase` (exit code 75); the same command resumes it and ends with the same bits."""
    here = ["--save_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--resume"]
    process = start_paused(home, *here, "--num_workers", "2", stdout=stdout, prepare=PHASES[phase])
    os.kill(process.pid, getattr(signal, kind))
    stopped = finish(process, 15)
    assert stopped.code == 75, stopped
    assert not (tmp_path / "out/pretrain.lock").exists()
    if phase.startswith("in_") and phase != "in_cache":
        assert list((tmp_path / "out/pretrain.state").glob("0*"))
        assert stdout or f"stopped by {kind}; the same command with --resume continues" in stopped.output, stopped
    done = run_stage(home, *here)
    assert done.code == 0, done.output
    assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")


@pytest.mark.parametrize("kind, phase", QUICK)
def test_signal_in_any_phase_stops_a_run_without_a_loss(home, kind, phase, tmp_path):
    stopped_and_resumed(home, kind, phase, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", SIGNALS)
def test_every_signal_in_every_phase_stops_without_a_loss(home, kind, phase, tmp_path):
    stopped_and_resumed(home, kind, phase, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stdout", ["gone", "full", "closed"])
def test_every_phase_stops_without_an_output_to_write_to(home, stdout, phase, tmp_path):
    stopped_and_resumed(home, "SIGTERM", phase, tmp_path, stdout)


def test_hangup_that_nohup_ignores_stays_ignored(home, tmp_path):
    process = start_paused(home, "--save_dir", str(tmp_path), prepare=ignore_hangup)
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process).code == 0


def test_worker_processes_end_with_the_process_that_started_them(home, tmp_path):
    argv = ["--cache_dir", str(tmp_path / "cache"), "--save_dir", str(tmp_path), "--num_workers", "2"]
    process = start_paused(home, *argv, prepare=PHASES["in_cache"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 5
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: str) -> bool:
    """Return whether a process runs; of one that ended, only an empty command line is left."""
    with suppress(FileNotFoundError):
        return bool(Path(f"/proc/{pid}/cmdline").read_text())
    return False


@pytest.mark.parametrize("stdout", ["gone", "full", "closed"])
def test_run_without_an_output_ends_like_any_other(home, stdout, tmp_path):
    assert run_stage(home, "--save_dir", str(tmp_path), stdout=stdout).code == 0
    assert weight_bytes(tmp_path) == weight_bytes(home / "whole")


def test_folder_that_cannot_be_synced_costs_nothing(home, tmp_path):
    assert run_stage(home, "--save_dir", str(tmp_path), prepare=forbid_folder_sync).code == 0


def test_old_state_that_cannot_be_deleted_is_named(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path), "--save_step", "2", "--keep", "1", prepare=forbid_rmtree)
    assert done.code == 0 and "00000002 is no longer needed and cannot be deleted" in done.output, done.output
    assert "was not saved" not in done.output and (tmp_path / "pretrain.state/00000006").is_dir()


def test_without_shared_memory_one_process_encodes(home, tmp_path):
    argv = ["--save_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"), "--num_workers", "2"]
    done = run_stage(home, *argv, prepare=forbid_shared_memory)
    assert done.code == 0 and "/dev/shm" in done.output and "one process encodes" in done.output, done.output


def test_log_without_a_terminal_has_lines(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path))
    assert "\r" not in done.output
    assert any(line.startswith("pretrain step 2 of 6: loss ") for line in done.output.splitlines()), done.output


def test_results_folder_that_is_removed_during_a_run_is_made_again(home, tmp_path):
    process = start_paused(home, "--save_dir", str(tmp_path / "out"), "--save_step", "0", prepare=PHASES["in_step"])
    subprocess.run(["rm", "-r", str(tmp_path / "out")], check=True)
    assert finish(process).code == 0
    assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")
    logs = [(folder / "pretrain.metrics.jsonl").read_bytes() for folder in (tmp_path / "out", home / "whole")]
    assert logs[0].count(b"\n") == logs[1].count(b"\n") > 3


def test_names_that_are_not_utf8_can_be_used(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path / "out\udcff"))
    assert done.code == 0, done.output
    assert json.loads((tmp_path / "out\udcff/pretrain.json").read_bytes())["flags"]["save_dir"].endswith("out\udcff")


def test_fp16_that_only_overflows_ends_with_one_line(home, tmp_path):
    argv = "--dtype float16 --z_loss 1e20 --max_steps 60 --eval_step 0".split()
    done = run_stage(home, "--save_dir", str(tmp_path), *argv)
    assert done.code == 2 and "overflowed and were skipped" in done.output, done.output
    assert "Traceback" not in done.output
    rows = (tmp_path / "pretrain.metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(rows[-1], parse_constant=pytest.fail)["skipped_steps"] > 0


@pytest.mark.parametrize(
    "argv", ["--learning_rate 1e38 --eval_step 1", "--learning_rate 1e39 --eval_step 0 --save_step 1"]
)
def test_weights_that_are_not_finite_end_the_run_unsaved(home, argv, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path), "--warmup_iters", "0", *argv.split())
    assert done.code == 2 and "not finite" in done.output and "Traceback" not in done.output, done.output
    assert not (tmp_path / "pretrain.pth").exists()
