"""A stage in a process of its own, forked from one that has imported everything, disturbed in one way or another."""

import functools
import importlib
import json
import os
import resource
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from engine import cli, loop
from engine.checkpoint import training_state
from engine.corpus import token_cache
from engine.log import tracker
from engine.stage import resume, saver

SHAPE = "--dim 32 --n_layers 1 --n_heads 2 --n_kv_heads 1"
DEFAULTS = (
    "--batch_size 2 --accumulation_steps 2 --max_seq_len 64 --max_steps 6 --warmup_iters 2 --log_step 2 --eval_step 4 "
    "--save_step 3 --num_workers 1 --device cpu --dtype float32"
)
LATER = DEFAULTS.split()
TINY = SHAPE.split() + LATER
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["started", "pretrain", "SFT"])


class Ended(NamedTuple):
    code: int  # negative: the signal that killed it
    said: str


def write_data(folder: Path) -> None:
    texts = [{"text": f"第{i}天，小镇下雨，" + "船回来了。" * (i % 7)} for i in range(60)]
    talks = [
        {"conversations": [{"role": "user", "content": f"{i}加一"}, {"role": "assistant", "content": f"是{i + 1}。"}]}
        for i in range(60)
    ]
    for name, rows in (("pretrain", texts), ("sft_512", talks)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def begin(cwd: Path, *argv: str, stage: str = "pretrain", output: str = "", prepare: str = "", flags=TINY):
    """`output`: a file, full, gone (a pipe nobody reads) or closed; `prepare`: a function below, called there first."""
    log = cwd / f"said-{time.monotonic_ns()}"
    process = FORKS.Process(target=_child, args=(stage, [*flags, *argv], str(cwd), str(log), output, prepare))
    process.log = log
    process.start()
    return process


def end(process, seconds: float = 60) -> Ended:
    process.join(seconds)
    said = process.log.read_text("utf-8", "replace") if process.log.exists() else ""
    if process.is_alive():
        process.kill()
        raise AssertionError(f"hangs: {said[-2000:]}")
    return Ended(process.exitcode, said)


def go(cwd: Path, *argv: str, **how) -> Ended:
    return end(begin(cwd, *argv, **how))


def wait_for(path: Path, process, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        said = process.log.read_text("utf-8", "replace")[-2000:] if process.log.exists() else ""
        assert process.is_alive() and time.monotonic() < until, f"{path} does not appear: {said}"
        time.sleep(0.02)


def weights(folder: Path, name: str = "pretrain") -> list[bytes]:
    """The published weights, as bytes that can be compared."""
    content = torch.load(folder / f"{name}.pth", weights_only=True)
    return [content[name].numpy().tobytes() for name in sorted(content)]


def _child(stage: str, argv: list[str], cwd: str, log: str, output: str, prepare: str) -> None:
    os.chdir(cwd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests themselves run under nohup
    sys.stdout, sys.stderr = _streams(log, output)
    torch.set_num_threads(1)
    tracker.draw = lambda rows, path: None  # half a second each time
    for name in filter(None, prepare.split()):
        globals()[name]()
    cli.run(lambda: importlib.import_module(stage).main(argv))


def _streams(log: str, output: str):
    if output == "gone":
        reader, descriptor = os.pipe()
        os.close(reader)
    else:
        descriptor = os.open("/dev/full" if output == "full" else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    if output == "closed":
        os.close(1), os.close(2)
        return None, None
    return open(1, "w", buffering=1), open(2, "w", buffering=1)


# ------------------------------------------------------------------------------------- what is done to a stage


def waits(real, seconds: float, times: int = 1, after: int = 0):
    """`real`, which leaves a file `there` and takes a while, `times` times after the first `after`."""
    calls = [0]

    @functools.wraps(real)
    def slow(*arguments, **options):
        calls[0] += 1
        if after < calls[0] <= after + times:
            Path("there").touch()
            time.sleep(seconds)
        return real(*arguments, **options)

    return slow


def in_cache():
    token_cache._encode_block = waits(token_cache._encode_block, 20)


def before_step_1():
    loop.validate = waits(loop.validate, 20)


def in_step():
    loop.train_step = waits(loop.train_step, 1, after=3)


def in_save():
    saver.training_state.write = waits(training_state.write, 1)


def in_validation():
    loop.validate = waits(loop.validate, 1, after=1)


def ignores_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def dies_before_json():
    """The last of the files that a save writes, after the state and the .pth."""
    saver.save_weights = lambda path, content, meta: os._exit(137)


def no_folder_sync():
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        return real(descriptor)

    os.fsync = fsync


def old_states_stay():
    def rmtree(path, ignore_errors=False, **_):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted", str(path))

    training_state.shutil.rmtree = rmtree


def no_shared_memory():
    from engine.corpus import worker_pool

    def refuses(*_):
        raise OSError(30, "Read-only file system")

    worker_pool.ProcessPoolExecutor = refuses


def overwrite_cannot_delete():
    def rmtree(path, ignore_errors=False, **_):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted", str(path))

    resume.shutil.rmtree = rmtree


def dies_before_a_write():
    """kill -9 before the call, of the number in die-before, that puts something on the disk for good."""
    calls = [0]
    number = int(Path("die-before").read_text())

    def wrap(module, name: str):
        real = getattr(module, name)

        @functools.wraps(real)
        def dying(*arguments, **options):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(module, name, dying)

    for name in ("fsync", "replace", "rmdir", "unlink"):
        wrap(os, name)
