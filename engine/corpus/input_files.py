"""The files that a user names, or that are in a folder: the type and the encoding of each, by its first bytes."""

import ast
import codecs
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from engine.corpus.encodings import guess_encoding, guess_unicode, is_text_of
from engine.corpus.file_types import HEADER_BYTES, detect_file_type
from engine.corpus.json_values import read_values
from engine.corpus.jsonl import READ_BLOCK_BYTES, parse_line, split_lines
from engine.corpus.packed_files import PACKED, import_for, open_unpacked
from engine.schemas import SCHEMAS, BadRow, schemas_of

REPORT_TITLE = "Data prepared by prepare_data.py"  # of report.html
MAX_DOCUMENT_BYTES = 64 << 20  # of a file that is one text
SPLIT = ("text", "markdown")  # by --split_text
ONE_DOCUMENT = (*SPLIT, "html", "python")
PACKAGES = {"parquet": "pyarrow.parquet", "arrow": "pyarrow", "html": "resiliparse.extract.html2text"}
LEFT_NAMES = [  # (pattern of a file's or folder's name, reason)
    (r"\..*", "hidden"),
    (r"node_modules|__pycache__", "a folder of programs"),
    (r"dataset_infos?\.json|dataset_dict\.json|state\.json", "describes a data set"),
    (r".*\.ipynb", "a notebook; export it as Markdown"),
    (r"cache-[0-9a-f]+.*\.arrow", "a cache of the datasets library"),
]
# Of names without .gz and the like. They say what a text is for; what its bytes say goes first.
SUFFIXES = {
    **dict.fromkeys(("md", "markdown"), "markdown"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
    **dict.fromkeys(("csv", "tsv"), "table"),
    **dict.fromkeys(("json", "jsonl", "ndjson"), "jsonl"),
}


@dataclass(frozen=True)
class InputFile:
    """A file that is read."""

    path: Path
    name: str  # from the folder that the user named on, with "/": the same on every machine
    type: str  # jsonl, json, python, text, markdown, html, table, parquet or arrow
    packed: str = ""  # gzip, zstd, xz or bzip2
    encoding: str = "utf-8"
    split_text: str = (
        "none"  # a text is one document; "line": each of its lines is; "paragraph": each of its paragraphs
    )


def find_files(
    paths: Sequence[str | Path], *, encoding: str | None = None, split_text: str = "none"
) -> tuple[list[InputFile], list[tuple[str, str]]]:
    """Return the files that are read, and (name, reason) of those that are not; both by name, not as they are given.

    Args:
        paths: Files and folders.
        encoding: Codec of the texts that are neither UTF-8 nor UTF-16; None guesses it.
        split_text: As in InputFile.
    Raises:
        ValueError: A path is missing, there is nothing to read, or the encoding of a text is not sure.
    """
    if encoding is not None and not _is_codec(encoding):
        raise ValueError(f"--encoding {encoding}: no such encoding; gb18030, big5, shift_jis, cp1252 are some")
    files: list[InputFile] = []
    left: list[tuple[str, str]] = []
    for name, path in _unique_names(_walk(paths, left), left).items():
        file = _inspect(path, name, encoding, split_text)
        if isinstance(file, InputFile):
            _check_readable(file)
            files.append(file)
        else:
            left.append((name, file))
    left.sort()
    if unknown := [file.name for file in files if not file.encoding]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{', '.join(unknown[:5])}{more}: not UTF-8, and no other encoding is sure; name it by --encoding "
            "(gb18030, big5, shift_jis, cp1252, ...), which holds for all texts that are not UTF-8"
        )
    if not files:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in left[:5])
        raise ValueError(f"{', '.join(map(str, paths))}: nothing to read, and {len(left)} files are left out{reasons}")
    return files, left


def _check_readable(file: InputFile) -> None:
    """Find out before an hour of reading what would stop it."""
    if file.type in PACKAGES:
        import_for(PACKAGES[file.type], file.path, f"reading {file.type}")
    if file.type in ONE_DOCUMENT and file.split_text == "none" and not file.packed:
        check_size(file, file.path.stat().st_size)


def check_size(file: InputFile, num_bytes: int) -> None:
    """Raise ValueError for a text that is too long for one document."""
    if num_bytes > MAX_DOCUMENT_BYTES:
        remedy = "split the file"
        if file.type in SPLIT:
            remedy = f"give --split_text line or paragraph if it holds many, or {remedy}"
        raise ValueError(f"{file.path}: a text of more than {MAX_DOCUMENT_BYTES >> 20} MiB; {remedy}")


def _is_codec(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


# ------------------------------------------------------------------------------------------------------ folders


def _walk(paths: Sequence[str | Path], left: list[tuple[str, str]]) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of all files, and add to `left` what is not looked into.

    A folder to which a link leads is entered once.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if not path.is_dir():
            yield _printed(path.name), path
        entered = set()
        for folder, folders, names in os.walk(path, followlinks=True):
            is_new = os.path.realpath(folder) not in entered
            entered.add(os.path.realpath(folder))
            inside = [Path(folder, name) for name in sorted((*folders, *names)) if is_new]
            reasons = {entry: _reason_to_leave(entry) for entry in inside if not _is_prepared(entry)}
            folders[:] = sorted(entry.name for entry, reason in reasons.items() if not reason and entry.is_dir())
            for entry, reason in reasons.items():
                name = _printed(entry.relative_to(path).as_posix())
                if reason:
                    left.append((name, reason))
                elif not entry.is_dir():
                    yield name, entry


def _is_prepared(path: Path) -> bool:
    """Return whether prepare_data.py made a folder, also in a dry run, or was killed in making it."""
    if (path / "dropped.jsonl.gz").is_file():
        return True
    report = path / "report.html"
    return report.is_file() and REPORT_TITLE.encode() in report.read_bytes()[:HEADER_BYTES]


def _printed(name: str) -> str:
    """Escape the bytes of a name that are no UTF-8: names are written to files and hashed."""
    return name.encode("utf-8", "backslashreplace").decode()


def _reason_to_leave(path: Path) -> str:
    return next((reason for pattern, reason in LEFT_NAMES if re.fullmatch(pattern, path.name, re.DOTALL)), "")


def _unique_names(files: Iterator[tuple[str, Path]], left: list[tuple[str, str]]) -> dict[str, Path]:
    """Return {name: file}, sorted. A file that is there twice is read once; equal names get more of their folders."""
    by_place: dict[str, tuple[str, Path]] = {}
    for name, path in sorted(files):
        place = os.path.realpath(path)
        if place not in by_place:
            by_place[place] = (name, path)
        elif name != by_place[place][0]:
            left.append((name, f"the same file as {by_place[place][0]}"))
    names = {path: name for name, path in by_place.values()}
    while repeated := {name for name, count in Counter(names.values()).items() if count > 1}:
        for path, name in names.items():
            if name in repeated:
                names[path] = _printed("/".join(path.absolute().parts[-name.count("/") - 2 :]))
    return {name: path for path, name in sorted(names.items(), key=lambda item: item[1])}


# -------------------------------------------------------------------------------------------------------- types


def _inspect(path: Path, name: str, encoding: str | None, split_text: str) -> InputFile | str:
    """Return a file with its type and encoding, "" where that is not known; or why it is not read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "a pipe or a device"
        with open(path, "rb") as raw:
            magic = raw.read(8)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    packed = next((packing for mark, packing in PACKED.items() if magic.startswith(mark)), "")
    with open_unpacked(path, packed) as stream:
        head = stream.read(HEADER_BYTES)
        if not head.strip():
            return "empty"
        file_type = None if guess_unicode(head).startswith(("utf-16", "utf-32")) else detect_file_type(head)
        if file_type is None or file_type.type not in ("", "packed", "parquet", "arrow"):
            sample = _read_past_ascii(stream, head)
            guessed = guess_unicode(sample) or ("utf-8" if _is_utf8_with_bad_rows(sample) else encoding)
            if guessed is None:
                guessed = guess_encoding(sample, partial(_ask_chardet, path))
            text = head.decode(guessed or "latin-1", "replace").encode()
            named = SUFFIXES.get(re.sub(r"\.(gz|zst|xz|bz2)$", "", name.lower()).rpartition(".")[2], "text")
            kind = _text_type(text, named)
            if kind == "html" and named in ("jsonl", "table"):
                return "a web page (of an error or a login?); fetch the file again, or name it .html"
            problem = _json_problem(text) if kind == "json" else ""
            if problem and "breaks off" not in problem:  # one that breaks off is an error, when it is read
                return f"line {problem[1:]}"
            return InputFile(path, name, kind, packed, guessed, split_text)
    if file_type.type in ("parquet", "arrow"):
        return InputFile(path, name, file_type.type, packed)
    if "python -c" in file_type.remedy:
        return f"{file_type.name}; write its texts to a file first"
    remedy = file_type.remedy.replace("PATH", "FILE").replace("OUT", "ROWS.jsonl")
    return f"{file_type.name}; {remedy[0].lower()}{remedy[1:]}"


def _ask_chardet(path: Path, text: bytes) -> str:
    task = "telling the encoding of a text that is not UTF-8 (or name it by --encoding)"
    return import_for("chardet", path, task).detect(text)["encoding"] or ""


def _read_past_ascii(stream: BinaryIO, head: bytes) -> bytes:
    """Return the first part of a text that is not ASCII alone: the rest says nothing about an encoding."""
    num_bytes = 0
    while head.isascii() and b"\0" not in head and num_bytes < READ_BLOCK_BYTES:
        num_bytes += len(head)
        more = stream.read(HEADER_BYTES)
        if not more:
            break
        head = more
    return head


def _text_type(head: bytes, named: str) -> str:
    """Return the type of a text that begins so, in UTF-8; `named` is the type that its name says."""
    file_type = detect_file_type(head)
    if file_type is None and named != "jsonl" and not _is_mostly_rows(head):
        return named
    if file_type is None:
        return "json" if b"\n" not in head.strip() and not _is_known_row(head.strip()) else "jsonl"
    if named == "jsonl" or file_type.type == "html":
        return file_type.type
    is_type = {"json": _is_json, "python": _is_python, "table": _has_known_column}.get(file_type.type)
    return file_type.type if is_type and is_type(head) else named


def _is_mostly_rows(head: bytes) -> bool:
    lines = [line for _, line in split_lines(1, head)][:20]
    return 2 * sum(bool(_parse(line)) for line in lines) >= len(lines)


def _is_known_row(line: bytes) -> bool:
    row = _parse(line)
    return isinstance(row.get("text"), str) or bool(schemas_of(row) and not detect_file_type(line, is_one_row=True))


def _is_utf8_with_bad_rows(head: bytes) -> bool:
    lines = [line for _, line in split_lines(1, head)]
    return _is_mostly_rows(head) and sum(is_text_of("utf-8", line) for line in lines) >= 0.9 * len(lines)


def _parse(line: bytes) -> dict:
    try:
        return parse_line(line)
    except BadRow:
        return {}


def _is_json(head: bytes) -> bool:
    problem = _json_problem(head)
    return not problem or ("breaks off" in problem and len(head) >= HEADER_BYTES)


def _json_problem(head: bytes) -> str:
    """Return why no first value can be read, ":line: problem"; "" where one can."""
    try:
        next(read_values(io.StringIO(head.decode(errors="ignore")), ""), None)
    except ValueError as error:
        return str(error)
    return ""


def _is_python(head: bytes) -> bool:
    text = head.decode(errors="ignore").strip()
    try:
        ast.literal_eval(text if text.startswith("[") else text.partition("\n")[0])
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _has_known_column(head: bytes) -> bool:
    names = re.split(r'[\t,;|"]+', head.partition(b"\n")[0].decode(errors="ignore").strip().lower())
    return not {"text", *SCHEMAS}.isdisjoint(names)
