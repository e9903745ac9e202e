"""Several processes equal one, are restarted by torchrun when killed, and can be continued by fewer or more."""

import json
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
from factories import rows, tensors
from forked import LONGER, TINY, children, differences, finish, run_stage, start_stage, wait_for

import pretrain
from engine.stage import resume

TWO = "--standalone", "--nproc_per_node=2"


@pytest.fixture(scope="module")
def two(home, undisturbed):
    """Return a function of --parallel that gives the undisturbed run of two processes."""
    runs = {}

    def make(parallel: str):
        if parallel not in runs:
            folder = home / f"two-{parallel}"
            argv = [*undisturbed["pretrain"][0], "--accumulation_steps", "1", "--parallel", parallel]
            done = run_stage(home, *argv, "--save_dir", folder.name, torchrun=TWO)
            assert done.code == 0, done.output
            runs[parallel] = argv, folder
        return runs[parallel]

    return make


def assert_close(actual, expected, stage="pretrain") -> None:
    """Compare every row of the log and all tensors, to float tolerance."""
    logs = [rows(folder / f"{stage}.metrics.jsonl") for folder in (actual, expected)]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for row, reference in zip(*logs, strict=True):
        for key in row.keys() - {"sample"}:
            assert row[key] == pytest.approx(reference[key], rel=2e-3), (row["step"], key)
    states = [tensors(folder / f"{stage}.state") for folder in (actual, expected)]
    torch.testing.assert_close(*states, rtol=1e-2, atol=1e-4)


@pytest.fixture(scope="module")
def calm(home, undisturbed):
    """Return flags and results of pretraining without dropout: ranks draw from generators of their own."""
    argv = [*undisturbed["pretrain"][0], "--dropout", "0"]
    assert run_stage(home, *argv, "--save_dir", "calm").code == 0
    return argv, home / "calm"


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["SFT", "distill"])
def test_two_processes_equal_one_with_uneven_masks(stage, home, calm):
    argv = [*LONGER, "--init_from", "calm/pretrain.pth"]
    assert run_stage(home, *argv, "--save_dir", "one", stage=stage).code == 0
    for parallel in ("ddp", "fsdp"):
        options = [*argv, "--accumulation_steps", "1", "--parallel", parallel, "--save_dir", f"two-{parallel}"]
        done = run_stage(home, *options, stage=stage, torchrun=TWO)
        assert done.code == 0, done.output
        assert done.output.count("plan ") == 1  # one voice
        assert_close(home / "one", home / f"two-{parallel}", stage)


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_is_restarted_and_the_run_ends_with_the_same_bits(parallel, home, two):
    argv, whole = two(parallel)
    folder = home / f"elastic-{parallel}"
    options = [*argv, "--save_dir", folder.name, "--resume"]
    agent = start_stage(home, *options, torchrun=[*TWO, "--max-restarts=2"])
    wait_for(folder / "pretrain.state/00000006", agent)
    os.kill(children(agent.pid)[1], signal.SIGKILL)
    done = finish(agent)
    assert done.code == 0 and "no state" in done.output and "resuming after step" in done.output, done.output
    assert not differences(whole, folder)


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_one_two_processes_end_as_two_would(parallel, home, calm):
    argv, single = calm
    pair = [*argv, "--accumulation_steps", "1", "--parallel", parallel]
    name = f"changing-{parallel}"
    changing = ["--save_dir", name, "--resume"]
    stopped = run_stage(home, *pair, *changing, "--max_minutes", "1e-9", torchrun=TWO)
    assert "continues from step 1" in stopped.output, stopped.output
    alone = run_stage(home, *argv, *changing, "--accumulation_steps", "1", "--max_minutes", "1e-9")
    assert alone.code == 75 and "had 2 processes and has 1" in alone.output and "now 2 micro-batches" in alone.output
    done = run_stage(home, *pair, *changing, torchrun=TWO)
    assert done.code == 0 and "had 1 processes and has 2" in done.output, done.output
    assert_close(single, home / name)  # and one process would


@pytest.mark.faults
def test_a_sharded_state_goes_on_under_ddp(home, calm):
    argv = [*calm[0], "--accumulation_steps", "1", "--save_dir", "sharded", "--resume"]
    assert run_stage(home, *argv, "--parallel", "fsdp", "--max_minutes", "1e-9", torchrun=TWO).code != 0
    assert len(list((home / "sharded/pretrain.state/00000001/tensors").glob("*.distcp"))) == 2
    done = run_stage(home, *argv, torchrun=TWO)
    assert done.code == 0 and "resuming after step 1 " in done.output, done.output
    assert_close(calm[1], home / "sharded")


def test_rows_that_do_not_divide_among_processes_are_refused(undisturbed):
    argv, whole, _ = undisturbed["pretrain"]
    args = pretrain.parse_args([*TINY, *argv, "--save_dir", str(whole), "--resume"])
    rt = SimpleNamespace(world_size=3, broadcast_from_main=lambda make: make())
    with pytest.raises(ValueError, match="4 rows a step, which do not divide into 3 processes x 2 rows"):
        resume.begin(args, rt)


@pytest.mark.faults
def test_of_two_agents_one_is_killed_and_comes_back(home, two):
    """Two machines, here two agents on the loopback, with one process each."""
    argv, whole = two("ddp")
    folder = home / "agents"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [*argv, "--save_dir", "agents", "--resume"]
    meet = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        "--local-addr=127.0.0.1",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=test",
    ]
    first = start_stage(home, *options, torchrun=[*meet, "--rdzv-conf=is_host=1"])
    second = start_stage(home, *options, torchrun=[*meet, "--rdzv-conf=is_host=0"])
    wait_for(folder / "pretrain.state/00000003", first, 240)
    for pid in [second.pid, *children(second.pid)]:
        os.kill(pid, signal.SIGKILL)
    second.join()
    time.sleep(2)
    second = start_stage(home, *options, torchrun=[*meet, "--rdzv-conf=is_host=0"])
    done = finish(first, 400), finish(second, 60)
    assert done[0].code == done[1].code == 0, done[0].output + done[1].output
    assert not differences(whole, folder)
    assert json.loads((folder / "pretrain.json").read_text("utf-8"))["step"] == 12
