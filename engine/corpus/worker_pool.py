"""Processes that encode blocks of lines: in order, in bounded memory, and gone when the one that began them is."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

from engine.console import warn


def in_order(work: Callable, source: Iterable[tuple], start: Callable, setup: tuple, num_workers: int) -> Iterator:
    """work(*arguments) for each of `source`, by `num_workers` processes in which start(*setup) was called.

    At most two a process are in flight: memory does not grow with the file. Where the system has no room for the
    locks that several processes share, one does it all.
    """
    pool = _open(num_workers, start, setup) if num_workers > 1 else None
    if pool is None:
        start(*setup)
        yield from (work(*arguments) for arguments in source)
        return
    others = set(active_children())
    with pool:
        try:
            waiting = deque()
            for arguments in source:
                waiting.append(pool.submit(work, *arguments))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:  # an error or a signal: nobody waits for what they would still make
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


MOST_ON_WINDOWS = 61  # processes that one wait of Windows can watch


def _open(num_workers: int, start: Callable, setup: tuple) -> ProcessPoolExecutor | None:
    # fork shares the parent's pages; elsewhere it is unsafe or missing.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    if sys.platform == "win32":
        num_workers = min(num_workers, MOST_ON_WINDOWS)
    try:
        return ProcessPoolExecutor(num_workers, context, _begin, (os.getpid(), start, setup))
    except (OSError, ImportError, NotImplementedError) as error:
        warn(f"warning: no locks for {num_workers} processes here ({error}; /dev/shm holds them): one process encodes")
        return None


def _begin(parent: int, start: Callable, setup: tuple) -> None:
    """In the new process: signals are the parent's business, and without it there is nothing to do."""
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool itself ends its processes by it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    start(*setup)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
