"""A run outlives its surroundings: what it says and tidies, where it stands and how it is stopped cost no state."""

import json
import os
import signal
import subprocess
import sys
import time
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

from engine import files

SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"]
QUICK = [
    ("SIGTERM", "in_cache"),
    ("SIGHUP", "before_step_1"),
    ("SIGQUIT", "in_step"),
    ("SIGUSR2", "in_save"),
    ("SIGXCPU", "in_validation"),
]


def stopped_and_resumed(home, kind, phase, tmp_path, stdout=""):
    """Stop a run by a signal once it is in `phase`: code 75; the same command goes on and ends with the same bits."""
    here = ["--save_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--resume"]
    process = start_paused(home, *here, "--num_workers", "2", stdout=stdout, prepare=PHASES[phase])
    os.kill(process.pid, getattr(signal, kind))
    stopped = finish(process, 15)
    assert stopped.code == 75, stopped
    assert not (tmp_path / "out/pretrain.lock").exists()
    if phase.startswith("in_") and phase != "in_cache":
        assert list((tmp_path / "out/pretrain.state").glob("0*"))
    done = run_stage(home, *here)
    assert done.code == 0, done.output
    assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")


@pytest.mark.parametrize("kind, phase", QUICK)
def test_a_signal_stops_a_run_in_any_phase_with_code_75_and_nothing_lost(home, kind, phase, tmp_path):
    stopped_and_resumed(home, kind, phase, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", SIGNALS)
def test_every_signal_in_every_phase(home, kind, phase, tmp_path):
    stopped_and_resumed(home, kind, phase, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stdout", ["gone", "full", "closed"])
def test_a_signal_in_every_phase_with_nobody_to_tell_it_to(home, stdout, phase, tmp_path):
    stopped_and_resumed(home, "SIGTERM", phase, tmp_path, stdout)


def test_a_hangup_that_nohup_ignores_stays_ignored(home, tmp_path):
    process = start_paused(home, "--save_dir", str(tmp_path), prepare=ignore_hangup)
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process).code == 0


def test_the_processes_of_a_cache_end_with_the_one_that_began_them(home, tmp_path):
    process = start_paused(
        home,
        "--cache_dir",
        str(tmp_path / "cache"),
        "--save_dir",
        str(tmp_path),
        "--num_workers",
        "2",
        prepare=PHASES["in_cache"],
    )
    children = list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    assert len(children) == 2
    process.kill()
    process.join()
    until = time.monotonic() + 5
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_text() for child in children
    ):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("stdout", ["gone", "full", "closed"])
def test_a_run_that_can_tell_nobody_ends_as_any_other(home, stdout, tmp_path):
    assert run_stage(home, "--save_dir", str(tmp_path), stdout=stdout).code == 0
    assert weight_bytes(tmp_path) == weight_bytes(home / "whole")


def test_a_pipe_that_closes_while_python_exits_keeps_the_code(tmp_path):
    program = "import sys; from engine import console; console.guard_streams(); print('held back'); sys.exit(75)"
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=writer).returncode == 75


def test_a_stream_that_cannot_write_a_letter_writes_its_escape():
    program = "from engine import console; console.guard_streams(); console.print0('结果 \\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, rb"\u7ed3\u679c \udcff")


def test_folders_that_cannot_be_synced_cost_nothing_and_a_failing_disk_is_told(home, tmp_path, monkeypatch):
    assert run_stage(home, "--save_dir", str(tmp_path), prepare=forbid_folder_sync).code == 0

    def fails(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.sync_folder(tmp_path)


def test_an_old_state_that_cannot_be_deleted_is_named_and_the_new_one_is_saved(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path), "--save_step", "2", "--keep", "1", prepare=forbid_rmtree)
    assert done.code == 0 and "00000002 is no longer needed and cannot be deleted" in done.output, done.output
    assert "was not saved" not in done.output and (tmp_path / "pretrain.state/00000006").is_dir()


def test_without_shared_memory_one_process_encodes_and_says_so(home, tmp_path):
    done = run_stage(
        home,
        "--save_dir",
        str(tmp_path),
        "--cache_dir",
        str(tmp_path / "cache"),
        "--num_workers",
        "2",
        prepare=forbid_shared_memory,
    )
    assert done.code == 0 and "/dev/shm" in done.output and "one process encodes" in done.output, done.output


def test_a_log_without_a_terminal_has_lines(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path))
    assert "\r" not in done.output
    assert any(line.startswith("pretrain step 2 of 6: loss ") for line in done.output.splitlines()), done.output


def test_a_results_folder_that_is_removed_meanwhile_is_made_again(home, tmp_path):
    process = start_paused(home, "--save_dir", str(tmp_path / "out"), "--save_step", "0", prepare=PHASES["in_step"])
    subprocess.run(["rm", "-r", str(tmp_path / "out")], check=True)
    assert finish(process).code == 0
    assert weight_bytes(tmp_path / "out") == weight_bytes(home / "whole")
    logs = [(folder / "pretrain.metrics.jsonl").read_bytes() for folder in (tmp_path / "out", home / "whole")]
    assert logs[0].count(b"\n") == logs[1].count(b"\n") > 3


def test_names_that_are_not_utf8_are_names(home, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path / "out\udcff"))
    assert done.code == 0, done.output
    assert json.loads((tmp_path / "out\udcff/pretrain.json").read_bytes())["flags"]["save_dir"].endswith("out\udcff")


def test_json_has_null_for_what_is_no_number():
    row = {"norm": float("nan"), "more": [float("inf"), 1.5], "name": "结果\udcff"}
    assert files.to_json(row) == '{"norm": null, "more": [null, 1.5], "name": "结果'.encode() + b'\\udcff"}\n'


def test_fp16_that_only_overflows_ends_with_one_line(home, tmp_path):
    done = run_stage(
        home,
        "--save_dir",
        str(tmp_path),
        "--dtype",
        "float16",
        "--z_loss",
        "1e20",
        "--max_steps",
        "60",
        "--eval_step",
        "0",
    )
    assert done.code == 2 and "overflowed and were skipped" in done.output and "Traceback" not in done.output, (
        done.output
    )
    rows = (tmp_path / "pretrain.metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(rows[-1], parse_constant=pytest.fail)["skipped_steps"] > 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning_rate", "1e38", "--eval_step", "1"],
        ["--learning_rate", "1e39", "--eval_step", "0", "--save_step", "1"],
    ],
)
def test_weights_that_are_no_numbers_end_the_run_with_one_line_and_are_not_saved(home, flags, tmp_path):
    done = run_stage(home, "--save_dir", str(tmp_path), "--warmup_iters", "0", *flags)
    assert done.code == 2 and "not finite" in done.output and "Traceback" not in done.output, done.output
    assert not (tmp_path / "pretrain.pth").exists()
