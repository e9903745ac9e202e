"""Parquet and arrow files, of which several processes make rows: part by part, in bounded memory."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from engine.corpus.input_files import PACKAGES, InputFile
from engine.corpus.jsonl import READ_BLOCK_BYTES, zero_fields_of
from engine.corpus.packed_files import import_for, open_unpacked
from engine.files import first_line
from engine.schemas import ZERO_KEYS

STREAM = b"\xff\xff\xff\xff"  # a stream of arrow begins so, a file does not


def read_parts(file: InputFile, advance: Callable[[int], object]) -> Iterator[tuple[int, bytes, frozenset[str]]]:
    """Yield (number of its first row, some READ_BLOCK_BYTES of a table as a stream of arrow, its zero fields).

    Args:
        file: A parquet or an arrow file.
        advance: Called with the bytes of the file that were read since the last call.
    Raises:
        ValueError: It is damaged, or pyarrow is missing.
    """
    pyarrow = import_for("pyarrow", file.path, f"reading {file.type}")
    try:
        with _open_seekable(file, advance) as raw:
            zero_fields = _zero_fields(_batches(raw, file))
            number, position = 1, 0
            for batch in _batches(raw, file):
                step = max(1, READ_BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes))
                for begin in range(0, batch.num_rows, step):
                    sink = pyarrow.BufferOutputStream()
                    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                        writer.write_batch(batch.slice(begin, step))
                    yield number + begin, sink.getvalue().to_pybytes(), zero_fields
                number += batch.num_rows
                if not file.packed and raw.tell() > position:
                    advance(raw.tell() - position)
                    position = raw.tell()
            if not file.packed:
                advance(file.path.stat().st_size - position)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{file.path}: damaged {file.type} file ({first_line(error)}); fetch it again") from None


def to_rows(part: bytes, file: InputFile) -> list[dict]:
    """Return the rows of a part."""
    return import_for("pyarrow", file.path, f"reading {file.type}").ipc.open_stream(part).read_all().to_pylist()


@contextmanager
def _open_seekable(file: InputFile, advance: Callable[[int], object]) -> Iterator[BinaryIO]:
    """Open a file, unpacked on the disk if it is packed."""
    if not file.packed:
        with open(file.path, "rb") as raw:
            yield raw
        return
    with TemporaryFile() as unpacked:
        with open_unpacked(file.path, file.packed, advance) as stream:
            shutil.copyfileobj(stream, unpacked)
        yield unpacked


def _batches(raw: BinaryIO, file: InputFile) -> Iterator[Any]:
    """Yield the record batches of a file; those of a parquet file by its row groups, read one at a time."""
    raw.seek(0)
    if file.type == "parquet":
        table = import_for(PACKAGES["parquet"], file.path, "reading parquet").ParquetFile(raw, pre_buffer=False)
        for group in range(table.num_row_groups):
            yield from table.iter_batches(1024, row_groups=[group])
        return
    ipc = import_for("pyarrow", file.path, "reading arrow").ipc
    is_stream = raw.read(4) == STREAM
    raw.seek(0)
    if is_stream:
        yield from ipc.open_stream(raw)
    else:
        reader = ipc.open_file(raw)
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _zero_fields(batches: Iterator[Any]) -> frozenset[str]:
    """Return jsonl.find_zero_fields of a table; all of it is read only if a column has such a name."""
    first = next(batches, None)
    if first is None or not any(key in str(first.schema) for key in ZERO_KEYS):
        return frozenset()
    rows = chain.from_iterable(batch.to_pylist() for batch in chain([first], batches))
    return zero_fields_of((0, json.dumps(row, default=str).encode()) for row in rows)
