"""Signals that ask a run to stop: it finishes its step and saves."""

import os
import signal
import threading


class StopRequest:
    """Context in which SIGTERM, SIGINT and SIGUSR1 only ask the run to stop after its step; a second Ctrl-C stops it.

    At once means without waiting for a save that is going on: what is there by then is whole.
    """

    def __init__(self):
        self.signal: str | None = None
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
            self._before = {kind: signal.signal(kind, self._handle) for kind in kinds}
        return self

    def __exit__(self, *_) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _handle(self, kind: int, frame: object) -> None:
        # os.write: print may be interrupted in the middle of itself.
        if self.signal and kind == signal.SIGINT:
            os.write(2, b"\nstopped at once\n")
            os._exit(130)
        self.signal = signal.Signals(kind).name
        os.write(2, f"\n{self.signal}: finishing this step and saving (Ctrl-C: stop at once)\n".encode())
