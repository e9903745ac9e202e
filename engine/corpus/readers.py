"""Files of texts and tables -> rows: the first step of prepare_data.py.

read_blocks reads and unpacks in the main process; parse_block makes rows of a block in any process. Memory does not
grow with a file.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, starmap
from typing import Any, NamedTuple, TextIO

from engine.corpus import arrow_tables
from engine.corpus.file_types import HEADER_BYTES, find_delimiter
from engine.corpus.input_files import (
    MAX_DOCUMENT_BYTES,
    PACKAGES,
    SPLIT,
    InputFile,
    check_size,
    find_files,
)
from engine.corpus.json_values import read_values
from engine.corpus.jsonl import READ_BLOCK_BYTES, join_lines, parse_line, split_lines, zero_fields_of, zeros_as_false
from engine.corpus.packed_files import import_for, open_unpacked
from engine.files import first_line
from engine.schemas import ZERO_KEYS, BadRow, schemas_of, type_name, unread_fields

__all__ = ["Block", "InputFile", "find_files", "parse_block", "read_blocks"]

Advance = Callable[[int], object]
PARAGRAPH_RE = re.compile(rb"\n(?:[ \t\r]*\n)+(?=[ \t]*\S)")  # before its first line
BORDERS = {"line": r"(\n)", "paragraph": r"(\n(?:[ \t]*\n)+)"}
MENUS = ["nav", "footer", "aside", "form", "button", "[role=navigation]", "[role=contentinfo]", "[role=search]"]
# Columns that are no fields of a schema: (question, answer), and a text.
PAIRS = [
    *(("question", name) for name in ("answer", "response")),
    *(("query", name) for name in ("answer", "response")),
    ("input", "output"),
    *(("问题", name) for name in ("答案", "回答")),
    ("问", "答"),
]
TEXT_COLUMNS = ("content", "article", "body", "document", "内容", "正文", "文本")


class Block(NamedTuple):
    """Some READ_BLOCK_BYTES of a file, which any process can parse."""

    first: int  # number of its first line, or row
    rows: Any  # bytes: lines, a document, or a table of arrow; or a list of (number, row or BadRow)
    zero_fields: frozenset[str] = frozenset()  # of the file (jsonl.find_zero_fields)


def _ignore(count: int) -> None:
    pass


def read_blocks(file: InputFile, advance: Advance = _ignore) -> Iterator[Block]:
    """Yield the blocks of a file.

    Args:
        file: From `find_files`.
        advance: Called with the bytes of the file (packed, if it is) that were read since the last call.
    Raises:
        ValueError: It is damaged or breaks off, one text of it is too long, or a package is missing.
    """
    try:
        if file.type in ("parquet", "arrow"):
            yield from starmap(Block, arrow_tables.read_parts(file, advance))
        elif file.type in ("json", "table"):
            yield from _read_rows(file, advance)
        elif file.type == "jsonl" or _is_split(file):
            yield from _read_lines(file, advance)
        else:
            yield _read_document(file, advance)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.path}: not {file.encoding}: {error.reason}") from None


def parse_block(file: InputFile, block: Block) -> Iterator[tuple[int, dict | BadRow]]:
    """Yield (number of its line or row, row) of what a block holds; a BadRow where it cannot be read.

    Args:
        file: From `find_files`.
        block: From `read_blocks`.
    """
    for number, row in _PARSERS[file.type](file, block):
        if isinstance(row, dict):
            row = zeros_as_false(_with_known_names(row), block.zero_fields)
        yield number, row


def _is_split(file: InputFile) -> bool:
    return file.type in SPLIT and file.split_text != "none"


# ------------------------------------------------------------------------------------------------------ reading


def _codec(file: InputFile) -> str:
    return "utf-8-sig" if file.encoding == "utf-8" else file.encoding


def _open_text(file: InputFile, advance: Advance = _ignore) -> TextIO:
    return io.TextIOWrapper(open_unpacked(file.path, file.packed, advance), _codec(file), "surrogateescape", "")


def _utf8_blocks(file: InputFile, advance: Advance = _ignore, end: bytes = b"\n") -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines in UTF-8); with another `end` than a line's, whole parts."""
    if file.encoding == "utf-8":
        with open_unpacked(file.path, file.packed, advance) as stream:
            yield from join_lines(stream.read, end)
    else:
        with _open_text(file, advance) as text:
            yield from join_lines(lambda size: text.read(size // 4).encode("utf-8", "surrogateescape"), end)


def _read_lines(file: InputFile, advance: Advance) -> Iterator[Block]:
    if file.type == "jsonl":
        zero_fields = zero_fields_of(_utf8_blocks(file))
        for first, lines in _utf8_blocks(file, advance):
            yield Block(first, lines, zero_fields)
        return
    number, rest = 1, b""
    for _, lines in _utf8_blocks(file, advance):
        lines = rest + lines
        end = len(lines)
        if file.split_text == "paragraph":
            end = max((match.end() for match in PARAGRAPH_RE.finditer(lines)), default=0)
        if end:
            yield Block(number, lines[:end])
        number += lines.count(b"\n", 0, end)
        rest = lines[end:]
        check_size(file, len(rest))
    if rest:
        yield Block(number, rest)


def _read_document(file: InputFile, advance: Advance) -> Block:
    with open_unpacked(file.path, file.packed, advance) as stream:
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
    check_size(file, len(content))
    return Block(1, content)


def _read_rows(file: InputFile, advance: Advance) -> Iterator[Block]:
    zero_fields = _zero_fields(file)
    with _open_text(file, advance) as text:
        source: Any = text.buffer.raw  # pyright: ignore[reportAttributeAccessIssue]
        begin, rows = 0, []
        for numbered in _rows(file, text):
            rows.append(numbered)
            if source.num_bytes - begin >= READ_BLOCK_BYTES:
                yield Block(rows[0][0], rows, zero_fields)
                begin, rows = source.num_bytes, []
        if rows:
            yield Block(rows[0][0], rows, zero_fields)


def _rows(file: InputFile, text: TextIO) -> Iterator[tuple[int, Any]]:
    return enumerate(read_values(text, str(file.path)), 1) if file.type == "json" else _table_rows(file, text)


def _zero_fields(file: InputFile) -> frozenset[str]:
    """Return jsonl.find_zero_fields of a file that is no JSONL."""
    if file.type == "json":
        return zero_fields_of(_utf8_blocks(file, end=b","))
    with _open_text(file) as text:
        rows = (row for _, row in _table_rows(file, text) if isinstance(row, dict))
        first = next(rows, {})
        if first.keys().isdisjoint(ZERO_KEYS):
            return frozenset()
        return zero_fields_of((0, json.dumps(_without_empty(row)).encode()) for row in chain([first], rows))


def _table_rows(file: InputFile, text: TextIO) -> Iterator[tuple[int, dict | BadRow]]:
    """Yield (number of its first line, row) of a table, of which the first line names the columns."""
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    reader = csv.reader(text, delimiter=_delimiter(file), strict=True)  # strict: a quote that is never closed is named
    names: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):
                raise ValueError(f"{file.path}:{number}: a quote that opens in this row is never closed") from None
            yield number, BadRow(f"not CSV ({error})")
            continue
        if cells is None:
            return
        if not names:
            names = [name.strip() or "index" for name in cells]  # pandas gives the numbers of rows no name
            if len(set(names)) < len(names):
                raise ValueError(f"{file.path}:{number}: two columns of one name among {', '.join(names)}")
        elif len(cells) == len(names):
            yield number, dict(zip(names, cells, strict=True))
        elif cells:
            yield number, BadRow(f"{len(cells)} cells, and {len(names)} columns")


def _delimiter(file: InputFile) -> str:
    with open_unpacked(file.path, file.packed) as stream:
        head = stream.read(HEADER_BYTES).decode(_codec(file), "replace").lstrip()
    first, _, rest = head.partition("\n")
    if delimiter := find_delimiter(first, rest):
        return delimiter
    return max("\t" if ".tsv" in file.name.lower() else ",", *",\t;|", key=first.count)


# ------------------------------------------------------------------------------------------------------ parsing


def _parse_lines(file: InputFile, block: Block) -> Iterator[tuple[int, dict | BadRow]]:
    for number, line in split_lines(block.first, block.rows):
        try:
            yield number, parse_line(line)
        except BadRow as error:
            yield number, error


def _parse_text(file: InputFile, block: Block) -> Iterator[tuple[int, dict | BadRow]]:
    if _is_split(file):
        text = block.rows.decode("utf-8-sig", "surrogateescape")  # a part that is no text becomes a bad row
        yield from _split_text(text.replace("\r\n", "\n"), block.first, BORDERS[file.split_text])
        return
    try:
        text = block.rows.decode(_codec(file)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = 1 + block.rows.count(b"\n", 0, error.start)
        yield line, BadRow(f"invalid {file.encoding}")
    else:
        yield 1, {"text": _text_of_page(text, file) if file.type == "html" else text}


def _text_of_page(page: str, file: InputFile) -> str:
    """Return the text of a web page with its line breaks, code blocks and tables, without its menus."""
    html2text = import_for(PACKAGES["html"], file.path, "reading html")
    return html2text.extract_plain_text(page, preserve_formatting=True, alt_texts=False, skip_elements=MENUS)


def _split_text(text: str, number: int, border: str) -> Iterator[tuple[int, dict]]:
    for part in re.split(border, text):
        if part.strip():
            yield number, {"text": part}
        number += part.count("\n")


def _parse_python(file: InputFile, block: Block) -> Iterator[tuple[int, dict | BadRow]]:
    content = block.rows.decode(_codec(file), "replace").encode()
    lines = [(1, content.strip())] if content.lstrip().startswith(b"[") else split_lines(1, content)
    for number, line in lines:
        try:
            value = ast.literal_eval(line.decode())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            yield number, BadRow(f"not Python's repr of an object ({first_line(error)})")
            continue
        rows = value if isinstance(value, list) else [value]
        yield from ((number, _row_of(row)) for row in rows)


def _parse_rows(file: InputFile, block: Block) -> Iterator[tuple[int, dict | BadRow]]:
    for number, value in block.rows:
        row = value if isinstance(value, BadRow) else _row_of(value)
        yield number, _without_empty(row) if file.type == "table" and isinstance(row, dict) else row


def _parse_arrow(file: InputFile, block: Block) -> Iterator[tuple[int, dict]]:
    for number, row in enumerate(arrow_tables.to_rows(block.rows, file), block.first):
        yield number, _without_empty(row)


_PARSERS = {
    "jsonl": _parse_lines,
    "python": _parse_python,
    **dict.fromkeys(("text", "markdown", "html"), _parse_text),
    **dict.fromkeys(("json", "table"), _parse_rows),
    **dict.fromkeys(("parquet", "arrow"), _parse_arrow),
}


def _row_of(value: Any) -> dict | BadRow:
    """Return a row, of a text too."""
    if isinstance(value, str):
        return {"text": value}
    return value if isinstance(value, dict) else BadRow(f"expected an object, found {type_name(value)}")


def _without_empty(row: dict) -> dict:
    """Return a table's row without its empty cells; with them if it has no text and no chat without them."""
    filled = {name: value for name, value in row.items() if value not in ("", None) and value == value}
    if _is_known(_with_known_names(filled)):
        return filled
    return {name: filled.get(name, "") for name in row}


def _is_known(row: dict) -> bool:
    return "text" in row or bool(schemas_of(row))


def _with_known_names(row: dict) -> dict:
    """Return a row whose fields are of a schema, or are named otherwise than one's."""
    if _is_known(row):
        return row
    row = {str(name).strip().lower(): value for name, value in row.items()}
    for question, answer in PAIRS:
        is_whole = question in row and answer in row and not unread_fields(row, (question, answer, "system"))
        if is_whole and not _is_known(row):  # else it is a choice of several, or asks about another column
            row |= {"prompt": row.pop(question), "completion": row.pop(answer)}
    for name in TEXT_COLUMNS:
        if not _is_known(row) and name in row:
            row |= {"text": row.pop(name)}
    return row
