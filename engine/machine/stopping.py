"""Signals that ask a run to stop: before its first step it ends at once, later it finishes its step and saves."""

import os
import signal
import threading

from engine.console import write_stderr

# The exit code of a run that was stopped early and can go on; 0 is a finished run, 2 a mistake, 130 a second Ctrl-C.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later

# What schedulers, torchrun and terminals send. Windows has few of them.
STOP_SIGNALS = "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"
_received: list[str] = []  # signals that came before the first step


class Stopped(SystemExit):
    """Raised where the program stands, so that everything on the way out is tidied up."""


def available_signals(*names: str) -> list[signal.Signals]:
    """Those of the signals that this system has; a SIGHUP that nohup ignores stays ignored."""
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [kind for kind in known if not (ignored and kind == signal.SIGHUP)]


def exit_on_signals(*names: str) -> None:
    """From here on these signals end the program with STOPPED: nothing has been trained that could be lost."""
    if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
        for kind in available_signals(*names):
            signal.signal(kind, _leave)


def exit_on_ctrl_c() -> None:
    """In training Ctrl-C is a signal like the others. Only where a script has begun to listen to them."""
    if signal.getsignal(signal.SIGTERM) is _leave:
        exit_on_signals("SIGINT")


def _leave(kind: int, frame: object) -> None:
    name = signal.Signals(kind).name
    if name in _received:  # something swallowed the first
        os._exit(STOPPED)
    _received.append(name)
    write_stderr(f"\n{name}: stopped; nothing is lost, the same command begins again\n")
    raise Stopped(STOPPED)


class StopRequest:
    """Context in which a signal only asks the run to stop after its step; a second Ctrl-C stops it at once.

    At once means without waiting for a save that is going on: what is there by then is whole. Until `hold` is called
    there is no step to finish, and a signal does what it did before.
    """

    def __init__(self):
        self.signal: str | None = next(iter(_received), None)
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        return self

    def hold(self) -> None:
        """The first step begins: from here on signals wait for the end of a step."""
        if threading.current_thread() is threading.main_thread():
            signals = available_signals("SIGINT", *STOP_SIGNALS)
            self._before = {signum: signal.signal(signum, self._handle) for signum in signals}

    def __exit__(self, *_) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _handle(self, kind: int, frame: object) -> None:
        if self.signal and kind == signal.SIGINT:
            write_stderr("\nstopped at once\n")
            os._exit(130)
        self.signal = signal.Signals(kind).name
        write_stderr(f"\n{self.signal}: finishing this step and saving (Ctrl-C: stop at once)\n")
