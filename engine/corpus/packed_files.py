"""Files that are packed or not, read as if they were not; one that breaks off is an error."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.corpus.file_types import GZIP

PACKED = {GZIP: "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}


def import_for(package: str, path: Path, task: str) -> Any:
    """Import an optional package.

    Args:
        package: Its name.
        path: The file for which it is needed.
        task: What it does, for the message.
    Raises:
        ValueError: It is not installed.
    """
    name = package.partition(".")[0]
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"{path}: {task} needs {name}: pip install {name}") from None


class _Unpacked(io.RawIOBase):
    """The content of a file; `advance` is called with the bytes of the file that were read since the last call."""

    def __init__(self, path: Path, packed: str, advance: Callable[[int], object]):
        self._path, self._packed = path, packed
        self._advance = advance
        self._raw = io.FileIO(path)
        self._position = 0
        self.num_bytes = 0  # unpacked
        self._stream: Any = self._raw
        if packed == "zstd":  # pyarrow reports a file that breaks off; zstandard's reader returns what there is
            pyarrow = import_for("pyarrow", path, "unpacking zstd")
            self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw), "zstd")
        elif packed:
            self._stream = {"gzip": gzip, "xz": lzma, "bzip2": bz2}[packed].open(self._raw)

    def readable(self) -> bool:
        """Return True: a reader of this class needs it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return with how many bytes; ValueError where the file is damaged."""
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None):  # a disk's, a network's
                raise
            raise ValueError(f"{self._path}: damaged {self._packed} file ({error}); fetch it again") from None
        self._advance(self._raw.tell() - self._position)
        self._position = self._raw.tell()
        self.num_bytes += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
        super().close()


def open_unpacked(path: Path, packed: str, advance: Callable[[int], object] = lambda count: None) -> io.BufferedReader:
    """Open the content of a file.

    Args:
        path: The file.
        packed: As in InputFile.
        advance: Called with the bytes of the file (packed, if it is) that were read since the last call.
    """
    return io.BufferedReader(_Unpacked(path, packed, advance), 1 << 20)
