"""One run a name: while a run goes on, <name>.lock names the process and the machine that have it.

The kernel ends a lock (flock; on Windows msvcrt's) with its process, however that one died, so a file that is left over
holds nobody up. Only what another machine left cannot be judged from here: not every shared folder passes locks on. It
is honoured, and the message says what to delete.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from engine.files import to_json
from engine.machine.runtime import Runtime
from engine.options import Output

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

FAR = 1 << 20  # the byte that is locked on Windows, where nobody may read a locked one: far behind the holder's name


@contextmanager
def alone(output: Output, rt: Runtime) -> Iterator[None]:
    """Have a run's name for this run alone; its main process holds the lock, and all learn that it is taken."""
    with ExitStack() as kept:
        rt.broadcast_from_main(lambda: kept.enter_context(hold(output.weights.with_suffix(".lock"))))
        yield


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock inside the context; ValueError names who has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have been removed; Windows keeps what is open, so nobody stands in it
            os.ftruncate(descriptor, 0)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.unlink(path)
        os.close(descriptor)


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free = _lock(descriptor)
            holder = _read(descriptor)
            if not free:
                raise ValueError(
                    f"{path}: {_words(holder)} is training here. Wait until it ends, stop it, or take another --name"
                )
            if _elsewhere(holder):
                raise ValueError(
                    f"{path}: {_words(holder)} has begun a run here, and from this machine nobody can see "
                    "whether it goes on. If it is gone, delete this file and start again"
                )
            if not (path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path))):
                os.close(descriptor)  # its holder ended and removed it between our opening and locking
                continue
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, to_json(_me()))
            return descriptor
        except ValueError:
            os.close(descriptor)
            raise


def _lock(descriptor: int) -> bool:
    """Whether no living process has it; a file system without locks knows nobody."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    except OSError:
        return not _lives(_read(descriptor))
    return True


def _lives(holder: dict) -> bool:
    """By its number alone, where the kernel keeps no locks; another process may have got it since."""
    pid = holder.get("process")
    if not isinstance(pid, int) or pid == os.getpid() or _elsewhere(holder) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)  # on Windows this would be a Ctrl-C
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _elsewhere(holder: dict) -> bool:
    """Neither this machine by name nor this start of a kernel: a container that is started again gets a new name."""
    me = _me()
    return "machine" in holder and holder["machine"] != me["machine"] and holder.get("kernel") != me["kernel"]


def _me() -> dict:
    kernel = ""
    with suppress(OSError):
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": os.getpid(), "machine": platform.node(), "kernel": kernel or platform.node(), "since": now}


def _read(descriptor: int) -> dict:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(descriptor, 4096))
    except ValueError:  # just made, or cut off by a crash
        return {}
    return holder if isinstance(holder, dict) else {}


def _words(holder: dict) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('machine')} (since {holder.get('since')})"
