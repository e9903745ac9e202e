"""Atomic writes, JSON, names of files, and the first line of an error."""

import argparse
import ctypes
import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

STALE_SECONDS = 3600  # an unfinished folder that has not grown for so long is no run's


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then rename it: no reader sees a part, and a crash leaves the old file.

    Args:
        path: The file; its folder is created.
        write: Called with the temporary file.
    Raises:
        OSError: Names `path` and the reason why it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp-{uuid4().hex[:8]}")  # process numbers may be equal on two machines
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save raises a RuntimeError on a full disk
        raise write_error(path, error, temporary) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def all_or_none(*paths: Path) -> Iterator[None]:
    """Remove new files, or all files of a folder that is new or empty, if the block that writes them fails."""
    folders = [path for path in paths if path.is_dir()]
    try:
        yield
    except BaseException:
        for path in paths:
            files = path.iterdir() if path.is_dir() else [path]
            for file in files:
                with suppress(OSError):
                    file.unlink()
            if path not in folders:
                with suppress(OSError):
                    path.rmdir()
        raise


def remove_stale_folders(folder: Path, now: float) -> None:
    """Remove what killed runs left of a folder that they were making; one that still grows is another run's.

    `now` is by the clock of the disk, which dates the files: a file server's may differ from this machine's.
    """
    for stale in folder.parent.glob(f"{glob.escape(folder.name)}.tmp-*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            newest = max(path.stat().st_mtime for path in (stale, *stale.iterdir()))
            if now - newest > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path` that takes its place when the block ends: a crash leaves the old one whole.

    Linux exchanges the two in one step; elsewhere there is a moment without either.

    Raises:
        OSError: Names `path` and the reason why it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp-{uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        remove_stale_folders(path, temporary.stat().st_mtime)
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        sync_folder(temporary)
        if not path.exists():
            os.rename(temporary, path)
        elif not _exchange(temporary, path):
            old = path.with_name(f"{temporary.name}.old")
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(path: Path, other: Path) -> bool:
    """Exchange two files or folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    return bool(rename) and rename(at_cwd, os.fsencode(path), at_cwd, os.fsencode(other), exchange) == 0


def write_error(path: Path, error: BaseException, part: Path | None = None) -> OSError:
    """Return the error that `path` cannot be written, with the system's reason.

    Args:
        path: What the user asked for.
        error: Raised by a writer. Those in C lose the reason; writing more to the same file then asks for it.
        part: The file that it was writing, if there is only one.
    """
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "errno", None):
        cause = cause.__cause__ or cause.__context__
    if cause is None and part:
        try:
            with open(part, "ab", buffering=0) as file:
                for _ in range(2):  # a first write may fit in part
                    file.write(bytes(1 << 16))
        except OSError as refused:
            cause = refused
    return OSError(f"cannot write {path}: {getattr(cause, 'strerror', None) or first_line(error)}")


def hash_file(path: Path) -> str:
    """Return the BLAKE2b hash of a file's content, 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_absent(*paths: Path) -> None:
    """Refuse to overwrite; ValueError names the first path that exists."""
    for path in paths:
        if os.path.lexists(path):  # a link to a file that is not there would be replaced
            raise ValueError(f"{path} already exists; choose another name, nothing is overwritten")


def remove_temp_files(*paths: Path) -> None:
    """Remove the temporary files that killed calls of atomic_write left; those of weights are as large as weights."""
    for path in paths:
        for temporary in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
            with suppress(OSError):
                temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # shared folders often cannot sync folders; a failing disk raises EIO
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\.|$)", re.IGNORECASE)


def file_name(name: str, windows: bool = os.name == "nt") -> str:
    """Return `name` if names of files can begin with it; a type for flags.

    A separator of either system is refused on both. Windows also refuses other characters and names of devices.

    Raises:
        argparse.ArgumentTypeError: No file can have such a name.
    """
    problem = ""
    if match := re.search(r'[/\\\x00-\x1f<>:"|?*]' if windows else r"[/\\\x00-\x1f]", name):
        problem = f"contains {match[0]!r}"
    elif not name.strip(" ."):
        problem = "is empty"
    elif windows and _RESERVED.match(name):
        problem = "is a device"
    if problem:
        raise argparse.ArgumentTypeError(f"{name!r} {problem}; the names of files cannot begin with it")
    return name


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON, atomically."""
    data = to_json(content, indent=1)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def read_json(path: Path, advice: str = "") -> dict:
    """Read a JSON object.

    Args:
        path: The file.
        advice: What the error message adds.
    Raises:
        ValueError: Not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}){advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: its content is {type(content).__name__}, expected an object{advice}")
    return content


def to_json(content: object, indent: int | None = None) -> bytes:
    """Return one line of JSON (or several with `indent`) as UTF-8 that every reader accepts.

    NaN and infinity, which JSON lacks, become null. A lone surrogate, as in the name of a file that is not UTF-8,
    becomes its escape, which is also JSON's.
    """
    text = json.dumps(nan_to_none(content), ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def nan_to_none(content: Any) -> Any:
    """Return the same lists and dicts with None in place of every number that is not finite."""
    if isinstance(content, dict):
        return {key: nan_to_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [nan_to_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the name of its class."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def read_log(path: Path) -> list[dict]:
    """Read the rows of a .jsonl file that a run writes; a row that a crash cut off is skipped."""
    content = path.read_bytes() if path.is_file() else b""
    rows = []
    for line in content.split(b"\n"):  # not splitlines, for which U+2028 in a sample ends a line
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def append_rows(path: Path, rows: list[dict]) -> None:
    """Append a line of JSON for each row; a last line without a line break gets one. A failed write leaves no part.

    Raises:
        OSError: Names `path` and the reason why it cannot be written.
    """
    data = b"".join(to_json(row) for row in rows)
    size = path.stat().st_size if path.is_file() else 0
    if size:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                data = b"\n" + data
    try:
        with open(path, "ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
    except OSError as error:
        if path.is_file():
            os.truncate(path, size)
        raise write_error(path, error) from error


def resolve_download_path(path: Path) -> Path:
    """Return the file of the same name inside `path`: `modelscope download --local_dir ./pretrain.jsonl` leaves it."""
    return path / path.name if (path / path.name).is_file() else path
