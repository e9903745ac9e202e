"""One run per name: while a run is active, <name>.lock names the process and the machine that hold the name.

filelock holds <name>.lock.held: the kernel releases it with its process, however that ended, so a file that is left
over blocks no run. A run on another machine cannot be judged from here, since not every shared folder passes locks on:
its file is honored, and the message says what to delete.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from engine.files import to_json
from engine.machine.runtime import Runtime
from engine.options import Output

OURS = b'{"process": '  # the first bytes of each


@contextmanager
def run_lock(output: Output, rt: Runtime) -> Iterator[None]:
    """Reserve the name of a run; its main process holds the lock, and every process learns if it is taken."""
    with ExitStack() as stack:
        rt.broadcast_from_main(lambda: stack.enter_context(hold_lock(output.weights.with_suffix(".lock"))))
        yield


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock inside the context; ValueError names its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not OURS.startswith(path.read_bytes()[: len(OURS)]):  # --name poetry: poetry.lock
        raise ValueError(f"{path} is not the lock of a run, and would be replaced: take another --name or --save_dir")
    holder = _read(path)
    if _is_elsewhere(holder):
        raise ValueError(
            f"{path}: {_describe(holder)} began a run here; this machine cannot see whether it still runs. "
            "If it is gone, delete this file and start again"
        )
    # More than one try: the first may open a file that its holder is about to remove.
    lock = FileLock(f"{path}.held", timeout=0.2)
    if not _acquire(lock, holder):
        raise ValueError(
            f"{path}: {_describe(_read(path))} is training here; wait until it ends, stop it, or pass another --name"
        )
    this_process = _this_process()
    try:
        path.write_bytes(to_json(this_process))
        yield
    finally:
        with suppress(OSError):
            if _read(path) == this_process:  # else the folder was removed, and another run may have begun in it
                path.write_bytes(b"")  # Windows does not remove a file that is open somewhere
                path.unlink()
                os.unlink(lock.lock_file)
        lock.release()


def _acquire(lock: BaseFileLock, holder: dict) -> bool:
    """Return whether no living process has the lock; a disk without locks is judged by the holder's process number."""
    try:
        lock.acquire()
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return not _is_alive(holder)
    return True


def _is_alive(holder: dict) -> bool:
    """Look for the process by its number alone; another process may have received it since."""
    pid = holder.get("process")
    if not isinstance(pid, int) or pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)  # on Windows this would be a Ctrl-C
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _is_elsewhere(holder: dict) -> bool:
    """Compare name and kernel: a container that is started again has a new name on the same kernel."""
    here = _this_process()
    return "machine" in holder and holder["machine"] != here["machine"] and holder.get("kernel") != here["kernel"]


def _this_process() -> dict:
    kernel = ""
    with suppress(OSError):
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": os.getpid(), "machine": platform.node(), "kernel": kernel or platform.node(), "since": now}


def _read(path: Path) -> dict:
    with suppress(FileNotFoundError, ValueError):  # ValueError: just created, or cut off by a crash
        holder = json.loads(path.read_bytes())
        return holder if isinstance(holder, dict) else {}
    return {}


def _describe(holder: dict) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('machine')} (since {holder.get('since')})"
