"""Files on disk: written whole or not at all; JSON; what went wrong, in one line."""

import argparse
import errno
import glob
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then rename it: a reader never sees half of one, a crash leaves the old."""
    temporary = path.with_name(f"{path.name}.tmp-{uuid4().hex[:8]}")  # two machines may have one process number
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temp_files(*paths: Path) -> None:
    """What write_whole left beside files when it was killed; of weights it takes as much room as they do."""
    for path in paths:
        for left_over in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
            with suppress(OSError):
                left_over.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # shared folders often cannot do it for folders; a disk that fails says EIO
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\.|$)", re.IGNORECASE)


def file_name(name: str, windows: bool = os.name == "nt") -> str:
    """`name`, which begins the names of files in one folder; ArgumentTypeError, as a flag's type, when it cannot.

    A separator of either system is refused on both. Windows has more that it does not take, or takes for a device.
    """
    held = re.search(r"[/\\\x00-\x1f]" if not windows else r'[/\\\x00-\x1f<>:"|?*]', name)
    problem = "is empty" if not name.strip(" .") else f"holds {held[0]!r}" if held else None
    if windows and _RESERVED.match(name):
        problem = "is a device"
    if problem:
        raise argparse.ArgumentTypeError(f"{name!r} {problem}, and cannot begin the name of a file")
    return name


def write_json(path: Path, content: dict) -> None:
    data = to_json(content, indent=1)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def to_json(content: object, indent: int | None = None) -> bytes:
    """One line of JSON (or several with `indent`) as UTF-8, which any reader takes.

    NaN and infinity, which JSON lacks, become null. Half a surrogate pair, as in the name of a file that is not UTF-8,
    becomes its escape, which is also how JSON spells it.
    """
    text = json.dumps(nan_to_none(content), ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def nan_to_none(content: Any) -> Any:
    """The same lists and dicts, with None for what is no finite number."""
    if isinstance(content, dict):
        return {key: nan_to_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [nan_to_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def first_line(error: BaseException) -> str:
    """The first line that says something, else what kind of error it is."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def read_log(path: Path) -> list[dict]:
    """The rows of a file that a run writes line by line; one that a crash cut off is left out.

    Not by splitlines: the U+2028 of a sample would end a line.
    """
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def resolve_download_path(path: Path) -> Path:
    """The file in a folder of its own name, which `modelscope download --local_dir ./pretrain.jsonl` leaves."""
    return path / path.name if (path / path.name).is_file() else path
