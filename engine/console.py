"""Print to stdout, warn on stderr: only in the main process, and above a visible progress bar.

Console output is best effort: a closed pipe or a full disk silences it but never stops training.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from tqdm import tqdm


def is_main_process() -> bool:
    """Return whether this process prints (torchrun numbers the processes of a run in RANK)."""
    return os.environ.get("RANK", "0").strip() in ("", "0")


def print0(message: object = "") -> None:
    """Print a result to stdout."""
    if is_main_process():
        tqdm.write(str(message), file=sys.stdout)
        sys.stdout.flush()


def warn(message: object) -> None:
    """Print a line that is no result to stderr: skipped input, a failure, progress."""
    if is_main_process():
        tqdm.write(str(message), file=sys.stderr)


def printable(text: str) -> str:
    """Escape control characters and lone surrogates, which a terminal would obey or refuse."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def write_stderr(message: str) -> None:
    """Write to stderr from a signal handler, past Python's buffer: the signal may have interrupted a print."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), message.encode("ascii", "backslashreplace"))


class BestEffortStream:
    """A stream that never raises: after its first failed write it writes to the null device.

    Python's buffer is written there, too, when it exits; a closed pipe would turn exit code 0 into 120.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if that is possible; return its length in either case."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        self._try(self._stream.flush)

    def _try(self, method: Callable, *args: str) -> None:
        try:
            method(*args)
        except (OSError, ValueError):  # ValueError: closed
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Make stdout and stderr best effort, also if they are closed or cannot encode every character."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # a file that is opened later would get this number, and receive the output
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, BestEffortStream):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ascii terminal, a name that is not UTF-8
        setattr(sys, name, BestEffortStream(stream))
