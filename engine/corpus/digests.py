"""Digests that identify a file by its content, and an index of them that saves reading it again."""

import hashlib
import json
from pathlib import Path

from engine.files import write_json


def hash_file(path: Path) -> str:
    """Return the BLAKE2b hash of a file's content, 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_digest(path: Path, cache_dir: Path) -> str:
    """Return size and hash of a file's content; an unchanged size and mtime save reading it, but identify nothing."""
    index_path = cache_dir / "digests.json"
    name, stat = str(path.resolve()), path.stat()
    entry = _read_index(index_path).get(name, [])
    if entry[:2] == [stat.st_size, stat.st_mtime_ns]:
        return entry[2]
    digest = f"{stat.st_size}:{hash_file(path)}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_json(index_path, {**_read_index(index_path), name: [stat.st_size, stat.st_mtime_ns, digest]})
    return digest


def _read_index(path: Path) -> dict[str, list]:
    """Return {file: [size, mtime, digest]} as far as it can be read: it saves time, and nothing else depends on it."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry for name, entry in index.items() if list(map(type, entry)) == [int, int, str]}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or written by something else
        return {}
