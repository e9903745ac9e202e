"""Runs that can be killed: stages in processes forked from one that has imported everything, and under torchrun."""

import functools
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from factories import WALL_CLOCK

from engine import cli, loop, packing
from engine.checkpoint import training_state
from engine.checkpoint.safe_reader import PlainReader
from engine.corpus import token_cache
from engine.log import tracker
from engine.stage import plan, resume, saver

ROOT = Path(__file__).parents[2]
SHAPE = "--dim 32 --n_layers 2 --n_heads 2 --n_kv_heads 1 --dropout 0.1"
DEFAULTS = (
    "--batch_size 2 --accumulation_steps 2 --max_seq_len 96 --max_steps 12 --warmup_iters 2 --log_step 2 --eval_step 7 "
    "--save_step 3 --num_workers 1 --device cpu --dtype float32"
)
LATER = DEFAULTS.split()
TINY = SHAPE.split() + LATER

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["harness", "pretrain", "SFT", "distill"])


# ------------------------------------------------------------------------------------------------- forked stages


class Ended(NamedTuple):
    code: int  # negative: the signal that killed it
    said: str


def begin(stage: str, argv: list[str], cwd: Path, prepare: str = "", *numbers: int):
    """A stage in a process of its own. `prepare` names a function below that is called there first."""
    log = cwd / f"said-{time.monotonic_ns()}"
    process = FORKS.Process(target=_child, args=(stage, argv, str(cwd), str(log), prepare, numbers))
    process.log = log
    process.start()
    return process


def end(process) -> Ended:
    process.join(120)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"hangs: {process.log.read_text('utf-8', 'replace')[-2000:]}")
    return Ended(process.exitcode, process.log.read_text("utf-8", "replace"))


def go(stage: str, argv: list[str], cwd: Path, prepare: str = "", *numbers: int) -> Ended:
    return end(begin(stage, argv, cwd, prepare, *numbers))


def _child(stage: str, argv: list[str], cwd: str, log: str, prepare: str, numbers: tuple) -> None:
    os.chdir(cwd)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    tracker.draw = lambda rows, path: None  # half a second each time
    if prepare:
        globals()[prepare](*numbers)
    cli.run(lambda: importlib.import_module(stage).main(argv))


def die_before_write(number: int) -> None:
    """kill -9 before the `number`th call that puts something on the disk for good."""
    calls = [0]

    def wrap(name: str):
        real = getattr(os, name)

        def dying(*arguments, **options):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, dying)

    for name in ("fsync", "replace", "rmdir"):
        wrap(name)


def endless_step(step: int) -> None:
    """A `step` that takes a minute, and a file that says it has begun."""
    real = loop.train_step

    def waits(run, *arguments):
        if run.batches.counter == step:
            (run.output.weights.parent / "endless").touch()
            time.sleep(60)
        run.batches.counter += 1
        return real(run, *arguments)

    packing.Batches.counter = 1
    loop.train_step = waits


def at_a_place(place: int, call: int, kind: int) -> None:
    """Signal `kind` to itself in the `call`th call of one of PLACES; 0: stand still there until there is a go-on."""
    module, name = PLACES[place]
    real, calls = getattr(module, name), [0]

    @functools.wraps(real)
    def reached(*arguments, **options):
        calls[0] += 1
        if calls[0] == call and kind:
            os.kill(os.getpid(), kind)
        elif calls[0] == call:
            Path("paused").touch()
            until = time.monotonic() + 60
            while not Path("go-on").exists() and time.monotonic() < until:
                time.sleep(0.01)
        return real(*arguments, **options)

    setattr(module, name, reached)


PLACES = [
    (token_cache, "_encode_block"),
    (plan, "trial"),
    (loop, "validate"),
    (loop, "train_step"),
    (training_state, "write"),
    (saver, "save_weights"),
    (training_state, "_drop_old"),
    (resume, "clear"),
    (resume, "finish"),
]


def small_files_only(first_save: int) -> None:
    """From the `first_save`th save on no file may be longer than 64 KiB, as on a disk that is full."""
    limit_at(first_save, lambda folder: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)))


def read_only_states(first_save: int) -> None:
    """From the `first_save`th save on nothing can be made in the folder of states."""
    if os.getuid() == 0:
        os.setuid(65534)
    limit_at(first_save, lambda folder: folder.chmod(0o555))


def no_disk_check() -> None:
    """The disk fills up after the run has begun."""
    plan.check_disk = lambda run, needed: None


def limit_at(first_save: int, limit) -> None:
    real, calls = training_state.write, [0]

    def write(folder, *arguments, **options):
        calls[0] += 1
        if calls[0] == first_save:
            limit(folder)
        return real(folder, *arguments, **options)

    training_state.write = write


# ------------------------------------------------------------------------------------------------------ torchrun


def torchrun(stage: str, argv: list[str], cwd: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(ROOT / f"{stage}.py"), *argv]
    log = cwd / f"said-{time.monotonic_ns()}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if "--standalone" not in options:
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as runs/multi_node.sh
    with open(log, "wb") as said:
        process = subprocess.Popen(command, cwd=cwd, stdout=said, stderr=subprocess.STDOUT, env=environment)
    process.log = log
    return process


def ended(process: subprocess.Popen, seconds: int = 240) -> Ended:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *workers(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {process.log.read_text('utf-8', 'replace')[-3000:]}") from None
    return Ended(process.returncode, process.log.read_text("utf-8", "replace"))


def workers(pid: int) -> list[int]:
    """The processes a torchrun agent started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(path: Path, process, seconds: float = 120) -> None:
    """Until a file is there; an error when the process has ended before."""
    until = time.monotonic() + seconds
    while not path.exists():
        running = process.is_alive() if hasattr(process, "is_alive") else process.poll() is None
        said = process.log.read_text("utf-8", "replace")[-2000:] if process.log.exists() else ""
        assert running and time.monotonic() < until, f"{path} does not appear: {said}"
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------------- comparing


def rows(metrics: Path) -> list[dict]:
    """The log without what a clock decides."""
    lines = metrics.read_bytes().split(b"\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def tensors(states: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer values of the newest state."""
    reader = PlainReader(training_state.find_newest(states) / "tensors")
    found = {name: torch.empty(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def differences(one: Path, other: Path, stage: str) -> list[str]:
    """What is not bitwise the same in two folders of results; [] when nothing was lost."""
    found = []
    mine, theirs = (torch.load(folder / f"{stage}.pth", weights_only=True) for folder in (one, other))
    found += [name for name in mine if not torch.equal(mine[name], theirs[name])]
    mine, theirs = (tensors(folder / f"{stage}.state") for folder in (one, other))
    found += [name for name in mine.keys() | theirs.keys() if not torch.equal(mine[name], theirs[name])]
    if rows(one / f"{stage}.metrics.jsonl") != rows(other / f"{stage}.metrics.jsonl"):
        found.append("metrics")
    return found
