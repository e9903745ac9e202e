"""Print to stdout, warn on stderr: only in the main process, and above a visible progress bar.

Console output is best effort: a closed pipe or a full disk silences it but never stops training. The stdout of a script
whose result it is ends the script instead.
"""

import os
import re
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


def escape_controls(text: str) -> str:
    """Escape as in JSON what a terminal obeys (escape sequences, a lone carriage return), and lone surrogates."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


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
        except (OSError, ValueError) as error:  # ValueError: closed
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            self.handle_failure(error)

    def handle_failure(self, error: Exception) -> None:
        """Continue without an output."""

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


class OutputError(Exception):
    """The result of a script cannot be written; no OSError, so that no handler for files takes it for its own."""


class ResultStream(BestEffortStream):
    """The stdout of a script whose result it is: a failed write raises OutputError."""

    def handle_failure(self, error: Exception) -> None:
        """End the script.

        Raises:
            OutputError: Always.
        """
        raise OutputError(f"cannot write to stdout: {error}") from error


def guard_streams(output_is_result: bool = False) -> None:
    """Make stdout and stderr best effort, also if they are closed or cannot encode every character.

    Args:
        output_is_result: stdout is a ResultStream instead; a line reaches it whole, so that nothing fails later.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # a file that is opened later would get this number, and receive the output
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, BestEffortStream):
            continue
        is_result = output_is_result and name == "stdout"
        if stream is None:
            null = os.open(os.devnull, os.O_RDONLY if is_result else os.O_WRONLY)  # a result is not lost in silence
            stream = open(null, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ascii terminal, a name that is not UTF-8
            stream.reconfigure(line_buffering=is_result or stream.line_buffering)
        setattr(sys, name, ResultStream(stream) if is_result else BestEffortStream(stream))
