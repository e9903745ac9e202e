"""What identifies a file: its content. The book of digests only saves reading it again."""

import hashlib
import json
from pathlib import Path

from engine.files import atomic_write


def content_digest(path: Path, cache_dir: Path) -> str:
    """Size and hash of the file's content. An unchanged size and mtime save the reading, but identify nothing."""
    book = cache_dir / "digests.json"
    known = _read_book(book)
    name, stat = str(path.resolve()), path.stat()
    if known.get(name, [])[:2] == [stat.st_size, stat.st_mtime_ns]:
        return known[name][2]
    with open(path, "rb") as file:
        digest = f"{stat.st_size}:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**_read_book(book), name: [stat.st_size, stat.st_mtime_ns, digest]})
    atomic_write(book, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return digest


def _read_book(book: Path) -> dict[str, list]:
    """{file: [size, mtime, digest]} as far as it is readable: it saves time, and nothing else depends on it."""
    try:
        found = json.loads(book.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {
        name: entry
        for name, entry in entries
        if isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]
    }
