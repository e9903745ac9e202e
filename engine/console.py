"""Speaking: `say` to stdout, `warn` to stderr, both only in the main process and above a progress bar that is shown.

The terminal is a courtesy: a reader that has gone away or a disk that is full makes a run silent and never ends it.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from tqdm import tqdm


def is_main() -> bool:
    """Whether this is the one process of a run that speaks (torchrun numbers them in RANK)."""
    return os.environ.get("RANK", "0").strip() in ("", "0")


def print0(words: object = "") -> None:
    if is_main():
        tqdm.write(str(words), file=sys.stdout)
        sys.stdout.flush()


def warn(words: object) -> None:
    """A line that is no result: what was left out, what failed and is tried again."""
    if is_main():
        tqdm.write(str(words), file=sys.stderr)


def printable(text: str) -> str:
    """Without the control characters and half surrogates that a terminal would obey or refuse."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def write_stderr(words: str) -> None:
    """To stderr from a signal handler: it may have interrupted a print, so Python's own buffer is not touched."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), words.encode("ascii", "backslashreplace"))


class BestEffortStream:
    """A stream that never raises. After its first failed write all it is given goes to the null device.

    So does what Python holds back and would write when it exits: a closed pipe would turn code 0 into 120 there.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable, *words: str) -> None:
        try:
            do(*words)
        except (OSError, ValueError):  # ValueError: closed
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Make stdout and stderr courtesies, also where they are closed or cannot write every letter."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # a file that is opened later would get this number, and what is said would land in it
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, BestEffortStream):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ascii terminal, a name that is not UTF-8
        setattr(sys, name, BestEffortStream(stream))
