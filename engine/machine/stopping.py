"""Signals that ask a run to stop: before its first step it ends at once, later it finishes its step and saves."""

import os
import signal
import threading

from engine.console import write_stderr

# Exit code of a run that was stopped early and can be resumed; 0 is a finished run, 2 a mistake, 130 a second Ctrl-C.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later

# Sent by schedulers, torchrun and terminals. Windows has few of them.
STOP_SIGNALS = "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"
_received: list[str] = []  # before the first step


def available_signals(*names: str) -> list[signal.Signals]:
    """Return the signals that this system has, without a SIGHUP that nohup ignores."""
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signum for signum in known if not (ignored and signum == signal.SIGHUP)]


def exit_on_signals(*names: str) -> None:
    """End the program with STOPPED on these signals; call it while there is no training that could be lost."""
    if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
        for signum in available_signals(*names):
            signal.signal(signum, _exit)


def exit_on_ctrl_c() -> None:
    """Handle Ctrl-C in training like the other signals, provided that the script handles those."""
    if signal.getsignal(signal.SIGTERM) is _exit:
        exit_on_signals("SIGINT")


def _exit(signum: int, frame: object) -> None:
    name = signal.Signals(signum).name
    if name in _received:  # the exception of the first was swallowed
        os._exit(STOPPED)
    _received.append(name)
    write_stderr(f"\n{name}: stopped; nothing is lost, the same command starts again\n")
    raise SystemExit(STOPPED)  # an exception, so that every context on the way out is closed


class StopRequest:
    """Context in which a signal only asks the run to stop after its step; a second Ctrl-C stops it at once.

    At once means without waiting for a running save: files that exist by then are whole. Before `hold` is called there
    is no step to finish, and signals keep their earlier handlers.
    """

    def __init__(self):
        self.signal: str | None = next(iter(_received), None)
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        return self

    def hold(self) -> None:
        """Let signals wait for the end of a step from here on: the first step begins."""
        if threading.current_thread() is threading.main_thread():
            signals = available_signals("SIGINT", *STOP_SIGNALS)
            self._before = {signum: signal.signal(signum, self._handle) for signum in signals}

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # not one of Python's, which it cannot set again
                signal.signal(signum, handler)

    def _handle(self, signum: int, frame: object) -> None:
        if self.signal and signum == signal.SIGINT:
            write_stderr("\nstopped at once\n")
            if self._before.get(signal.SIGTERM) is not _exit:  # the process is a notebook's, or another program's
                raise KeyboardInterrupt
            os._exit(130)
        self.signal = signal.Signals(signum).name
        write_stderr(f"\n{self.signal}: finishing this step and saving (Ctrl-C: stop at once)\n")
