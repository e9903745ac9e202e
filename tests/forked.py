"""Stages in processes forked from one that has imported everything: killed, signalled or short of something."""

import functools
import importlib
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.distributed.run
from factories import ROOT, rows, same, tensors, weights

from engine import cli, loop
from engine.checkpoint import training_state
from engine.corpus import token_cache, worker_pool
from engine.generate import sample_text
from engine.log import tracker
from engine.stage import plan, resume, saver

SHAPE = "--dim 32 --n_layers 1 --n_heads 2 --n_kv_heads 1".split()
LATER = (
    "--batch_size 2 --accumulation_steps 2 --max_seq_len 64 --max_steps 6 --warmup_iters 2 --log_step 2 --eval_step 4 "
    "--save_step 3 --num_workers 1 --device cpu --dtype float32"
).split()
TINY = SHAPE + LATER
LONGER = "--max_seq_len 96 --max_steps 12 --eval_step 7".split()
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["forked", "pretrain", "SFT", "distill"])


def new_process(target: Callable, *args: object):
    """Make a process that is forked, when it starts, from one that has imported everything."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with mock.patch.dict(os.environ, PYTHONPATH=paths):  # Python 3.11 preloads from there and the working folder alone
        forkserver.ensure_running()
    return FORKS.Process(target=target, args=args)


class Ended(NamedTuple):
    code: int  # negative: the signal that killed it
    output: str


def start_stage(cwd: Path, *argv: str, stage="pretrain", stdout="", prepare=None, torchrun=()):
    """Start a stage in a process of its own.

    Args:
        argv: Flags that are added to TINY, or replace its values; later stages have no SHAPE.
        stdout: A file, "full" (a disk), "gone" (a pipe without a reader) or "closed".
        prepare: A function of this module, called there first.
        torchrun: Options of torchrun; the process is then its agent.
    """
    log = cwd / f"output-{time.monotonic_ns()}"
    flags = [*(TINY if stage == "pretrain" else LATER), *argv]
    process = new_process(_child, cwd, log, stage, flags, stdout, prepare, torchrun)
    process.log = log
    if prepare:  # what an earlier process may have left
        for marker in ("paused", "continue"):
            (cwd / marker).unlink(missing_ok=True)
    process.start()
    return process


def finish(process, seconds: float = 240) -> Ended:
    """Wait for the end of a process; one that hangs is killed."""
    process.join(seconds)
    if process.is_alive():
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {_output(process)[-3000:]}")
    return Ended(process.exitcode, _output(process))


def run_stage(cwd: Path, *argv: str, **options) -> Ended:
    return finish(start_stage(cwd, *argv, **options))


def run_ranks(cwd: Path, program: Path, *argv: object, processes: int = 2) -> str:
    """Run a program in processes with a rank each, as under torchrun but without new imports; return its output."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    log, ranks = cwd / f"output-{time.monotonic_ns()}", []
    for rank in range(processes):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        ranks.append(new_process(_rank, cwd, log, program, argv, environment | mine))
        ranks[-1].log = log
        ranks[-1].start()
    ended = [finish(process, 120) for process in ranks]
    assert not any(rank.code for rank in ended), ended[0].output[-2000:]
    return ended[0].output


def start_paused(cwd: Path, *argv: str, prepare: Callable, **options):
    """Start a stage and wait until `prepare` has paused it."""
    process = start_stage(cwd, *argv, prepare=prepare, **options)
    wait_for(cwd / "paused", process)
    return process


def wait_for(path: Path, process, seconds: float = 120) -> None:
    """Wait until a file is there; an error when the process has ended before."""
    until = time.monotonic() + seconds
    while not path.exists():
        running = process.is_alive() and time.monotonic() < until
        assert running, f"{path} does not appear: {_output(process)[-2000:]}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _output(process) -> str:
    return process.log.read_text("utf-8", "replace") if process.log.exists() else ""


def _child(cwd: Path, log: Path, stage: str, argv: list[str], stdout: str, prepare, torchrun) -> None:
    os.chdir(cwd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests themselves run under nohup
    sys.stdout, sys.stderr = _streams(log, stdout)
    if torchrun:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if "--standalone" not in torchrun:
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as runs/multi_node.sh
        torch.distributed.run.main([*torchrun, str(ROOT / f"{stage}.py"), *argv])
        return
    torch.set_num_threads(1)
    mock.patch.object(tracker, "plot_losses").start()  # as the fixture short_runs
    mock.patch.object(sample_text, "NUM_NEW_TOKENS", 2).start()
    if prepare:
        prepare()
    cli.run(lambda: importlib.import_module(stage).main(argv))


def _rank(cwd: Path, log: Path, program: Path, argv: Sequence[object], environment: dict[str, str]) -> None:
    os.environ |= environment
    os.chdir(cwd)
    sys.stdout, sys.stderr = _streams(log, "")
    torch.set_num_threads(1)
    sys.argv = [str(program), *map(str, argv)]
    sys.path.insert(0, str(program.parent))
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.stdout.flush()


def _streams(log: Path, stdout: str):
    if stdout == "gone":
        reader, descriptor = os.pipe()
        os.close(reader)
    else:
        descriptor = os.open("/dev/full" if stdout == "full" else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if stdout == "closed":
        os.closerange(1, 3)
        return None, None
    return open(1, "w", buffering=1), open(2, "w", buffering=1)


# ------------------------------------------------------------------------------------- what `prepare` can be

WRITES = ("fsync", "replace", "rmdir", "unlink")  # the calls that put something on the disk for good
PLACES = {  # the functions of a run that a test can reach
    "_encode_block": token_cache,
    "dry_run": plan,
    "validate": loop,
    "train_step": loop,
    "write": training_state,
    "save_weights": saver,
    "_drop_old": training_state,
    "clear": resume.Start,
    "finish": resume.Start,
} | dict.fromkeys(WRITES, os)


def at_call(number: int, action: Callable, *places: str) -> None:
    """Do `action` before the `number`th call of functions among PLACES."""
    calls = count(1)

    def wrap(real: Callable) -> Callable:
        @functools.wraps(real)
        def wrapped(*args, **kwargs):
            if next(calls) == number:
                action()
            return real(*args, **kwargs)

        return wrapped

    for name in places:
        setattr(PLACES[name], name, wrap(getattr(PLACES[name], name)))


def send(signum: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), signum)


def pause(seconds: float = 60) -> None:
    """Leave a file `paused` and wait until there is a file `continue`, at most for some time."""
    Path("paused").touch()
    until = time.monotonic() + seconds
    while not Path("continue").exists() and time.monotonic() < until:
        time.sleep(0.01)


def signal_at(place: str, number: int, signum: int) -> None:
    at_call(number, partial(send, signum), place)


def pause_at(place: str, number: int, seconds: float = 60) -> None:
    at_call(number, partial(pause, seconds), place)


def die_before_write(number: int) -> None:
    at_call(number, partial(send, signal.SIGKILL), *WRITES)


PHASES = {
    "in_cache": partial(pause_at, "_encode_block", 1, 20),
    "before_step_1": partial(pause_at, "validate", 1, 20),
    "in_step": partial(pause_at, "train_step", 4, 1),
    "in_save": partial(pause_at, "write", 1, 1),
    "in_validation": partial(pause_at, "validate", 2, 1),
}


def ignore_hangup() -> None:
    """Pause in a step, as started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    PHASES["in_step"]()


def die_before_json() -> None:
    """Die before the last of the files that a save writes, after the state and the .pth."""
    at_call(1, partial(os._exit, 137), "save_weights")


def forbid_folder_sync() -> None:
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        return real(descriptor)

    os.fsync = fsync


def forbid_rmtree() -> None:
    def rmtree(path, ignore_errors=False, **_):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted", str(path))

    shutil.rmtree = rmtree


def forbid_shared_memory() -> None:
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    worker_pool.ProcessPoolExecutor = refuse


def limit_files(save: int) -> None:
    """Forbid files longer than 64 KiB from a save on, as on a disk that is full."""
    at_call(save, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)), "write")


def forbid_states(folder: str, save: int) -> None:
    """Forbid new files in a folder of states from a save on."""
    if os.getuid() == 0:
        os.setuid(65534)
    at_call(save, lambda: Path(folder).chmod(0o555), "write")


def skip_disk_check() -> None:
    """Let the disk fill up after the run has begun."""
    mock.patch.object(plan, "check_disk").start()


# ----------------------------------------------------------------------------------------------------- comparing


def weight_bytes(folder: Path, name: str = "pretrain") -> list[bytes]:
    """Return the published weights, as bytes that can be compared."""
    content = weights(folder / f"{name}.pth")
    return [content[name].numpy().tobytes() for name in sorted(content)]


def differences(expected: Path, actual: Path, stage: str = "pretrain") -> list[str]:
    """Return what is not bitwise the same in two folders of results; [] when nothing was lost."""
    readers = {f"{stage}.pth": weights, f"{stage}.state": tensors}
    different = [name for name, read in readers.items() if not same(read(expected / name), read(actual / name))]
    log = f"{stage}.metrics.jsonl"
    return different if rows(expected / log) == rows(actual / log) else [*different, log]
