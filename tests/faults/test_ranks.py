"""Several processes: equal to one, killed and restarted by torchrun, continued by another number of them."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from harness import LATER, differences, ended, free_port, go, rows, tensors, torchrun, wait_for, workers

TWO = "--standalone", "--nproc_per_node=2"


@pytest.fixture(scope="module")
def two(home, undisturbed):
    """parallel -> the undisturbed run of two processes."""
    made = {}

    def make(parallel: str):
        if parallel not in made:
            folder = home / f"two-{parallel}"
            argv = [*undisturbed["pretrain"][0], "--accumulation_steps", "1", "--parallel", parallel]
            done = ended(torchrun("pretrain", [*argv, "--save_dir", folder.name], home, *TWO))
            assert done.code == 0, done.said
            made[parallel] = argv, folder
        return made[parallel]

    return make


def assert_close(one, other, stage="pretrain") -> None:
    """To float tolerance: every row of the log and all tensors."""
    logs = [rows(folder / f"{stage}.metrics.jsonl") for folder in (one, other)]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for mine, theirs in zip(*logs, strict=True):
        for key in mine.keys() - {"sample"}:
            assert mine[key] == pytest.approx(theirs[key], rel=2e-3), (mine["step"], key)
    mine, theirs = (tensors(folder / f"{stage}.state") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-2, atol=1e-4)


@pytest.fixture(scope="module")
def calm(home, undisturbed):
    """(flags of pretraining, its results) without dropout: ranks draw from generators of their own."""
    argv = [*undisturbed["pretrain"][0], "--dropout", "0"]
    assert go("pretrain", [*argv, "--save_dir", "calm"], home).code == 0
    return argv, home / "calm"


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["SFT", "distill"])
def test_two_processes_equal_one_with_uneven_masks(stage, home, calm):
    argv = [*LATER, "--init_from", "calm/pretrain.pth"]
    assert go(stage, [*argv, "--save_dir", "one"], home).code == 0
    for parallel in ("ddp", "fsdp"):
        options = [*argv, "--accumulation_steps", "1", "--parallel", parallel, "--save_dir", f"two-{parallel}"]
        done = ended(torchrun(stage, options, home, *TWO))
        assert done.code == 0, done.said
        assert done.said.count("plan ") == 1  # one voice
        assert_close(home / "one", home / f"two-{parallel}", stage)


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_is_restarted_and_the_run_ends_with_the_same_bits(parallel, home, two):
    argv, whole = two(parallel)
    folder = home / f"elastic-{parallel}"
    options = [*argv, "--save_dir", folder.name, "--resume"]
    agent = torchrun("pretrain", options, home, *TWO, "--max-restarts=2")
    wait_for(folder / "pretrain.state/00000006", agent)
    os.kill(workers(agent.pid)[1], signal.SIGKILL)
    done = ended(agent)
    assert done.code == 0 and "no state" in done.said and "resuming after step" in done.said, done.said
    assert not differences(whole, folder, "pretrain")


@pytest.mark.faults
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_one_two_processes_end_as_two_would(parallel, home, calm):
    argv, one = calm
    pair = [*argv, "--accumulation_steps", "1", "--parallel", parallel]
    name = f"changing-{parallel}"
    changing = ["--save_dir", name, "--resume"]
    stopped = ended(torchrun("pretrain", [*pair, *changing, "--max_minutes", "1e-9"], home, *TWO))
    assert "goes on from step 1" in stopped.said, stopped.said
    alone = go("pretrain", [*argv, *changing, "--accumulation_steps", "1", "--max_minutes", "1e-9"], home)
    assert alone.code == 75 and "had 2 processes and has 1" in alone.said and "now 2 micro-batches" in alone.said
    done = ended(torchrun("pretrain", [*pair, *changing], home, *TWO))
    assert done.code == 0 and "had 1 processes and has 2" in done.said, done.said
    assert_close(one, home / name)  # and one would


@pytest.mark.faults
def test_a_sharded_state_goes_on_under_ddp(home, calm):
    argv = [*calm[0], "--save_dir", "sharded", "--resume"]
    argv[argv.index("--accumulation_steps") + 1] = "1"
    assert ended(torchrun("pretrain", [*argv, "--parallel", "fsdp", "--max_minutes", "1e-9"], home, *TWO)).code != 0
    assert len(list((home / "sharded/pretrain.state/00000001/tensors").glob("*.distcp"))) == 2
    done = ended(torchrun("pretrain", argv, home, *TWO))
    assert done.code == 0 and "resuming after step 1 " in done.said, done.said
    assert_close(calm[1], home / "sharded")


def test_rows_that_do_not_divide_among_the_processes_are_refused_with_the_numbers(home, undisturbed):
    argv, whole = undisturbed["pretrain"]
    shutil.copytree(whole, home / "odd")
    done = ended(
        torchrun("pretrain", [*argv, "--save_dir", "odd", "--resume"], home, "--standalone", "--nproc_per_node=3")
    )
    assert done.code != 0 and "4 rows a step, which do not divide into 3 processes x 2 rows" in done.said, done.said


@pytest.mark.faults
def test_of_two_agents_one_is_killed_and_comes_back(home, two):
    """Two machines, here two agents on the loopback, with one process each."""
    argv, whole = two("ddp")
    folder = home / "agents"
    options = [*argv, "--save_dir", "agents", "--resume"]
    meet = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        "--local-addr=127.0.0.1",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=test",
    ]
    first = torchrun("pretrain", options, home, *meet, "--rdzv-conf=is_host=1")
    second = torchrun("pretrain", options, home, *meet, "--rdzv-conf=is_host=0")
    wait_for(folder / "pretrain.state/00000003", first, 240)
    for pid in [second.pid, *workers(second.pid)]:
        os.kill(pid, signal.SIGKILL)
    second.wait()
    time.sleep(2)
    second = torchrun("pretrain", options, home, *meet, "--rdzv-conf=is_host=0")
    done = ended(first, 400), ended(second, 60)
    assert done[0].code == done[1].code == 0, done[0].said + done[1].said
    assert not differences(whole, folder, "pretrain")
    assert json.loads((folder / "pretrain.json").read_text("utf-8"))["step"] == 12
