"""Processes that encode blocks of lines: in order, in bounded memory, and gone when the one that started them is."""

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

MAX_WINDOWS_PROCESSES = 61  # that one wait of Windows can watch


def map_in_order(work: Callable, source: Iterable[tuple], start: Callable, setup: tuple, num_workers: int) -> Iterator:
    """Yield work(*arguments) for each arguments of `source`, in order.

    At most two a process are in flight, and one more: memory does not grow with the file. Where the system has no room
    for the locks that several processes share, this process does it all.

    Args:
        work: A function of a module, called in the processes.
        source: Its arguments.
        start: Called once in each process, before `work`.
        setup: The arguments of `start`.
        num_workers: Number of processes; 0 and 1 mean this one.
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
        except BaseException:  # an error or a signal: the results that are still to come are not needed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _open(num_workers: int, start: Callable, setup: tuple) -> ProcessPoolExecutor | None:
    # fork shares the parent's pages; elsewhere it is unsafe or missing.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    if sys.platform == "win32":
        num_workers = min(num_workers, MAX_WINDOWS_PROCESSES)
    try:
        return ProcessPoolExecutor(num_workers, context, _start, (os.getpid(), start, setup))
    except (OSError, ImportError, NotImplementedError) as error:
        warn(f"warning: no locks for {num_workers} processes here ({error}; /dev/shm holds them): one process encodes")
        return None


def _start(parent: int, start: Callable, setup: tuple) -> None:
    """Prepare a new process: the parent handles signals, and without the parent there is nothing to do."""
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool itself ends its processes by it
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    start(*setup)


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
