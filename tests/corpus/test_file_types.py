"""Files are known by their first bytes, never by their names: read, or named with the command that makes it JSONL."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import pickle
import re
import shlex
import sqlite3
import sys
import tarfile
import warnings
import zipfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train_tokenizer
from engine.corpus import readers
from engine.corpus.file_types import describe_file
from engine.score import records

ROWS = [json.dumps({"text": f"The boat number {number} comes home 船"}, ensure_ascii=False) for number in range(6)]
PLAIN = "\n".join(ROWS).encode() + b"\n"
BOM = b"\xef\xbb\xbf"


def named(value):
    return value if isinstance(value, str) else ""


def zipped():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("test.jsonl", PLAIN)
    return packed.getvalue()


def tarred(tar_format=tarfile.PAX_FORMAT, has_signature=True):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tar_format) as archive:
        info = tarfile.TarInfo("test.jsonl")
        info.size = len(PLAIN)
        archive.addfile(info, io.BytesIO(PLAIN))
    content = bytearray(packed.getvalue())
    if not has_signature:  # as tar wrote it before 1988
        content[257:265] = bytes(8)
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.jsonl.gz", PLAIN),
        ("rows.jsonl", gzip.compress(PLAIN)),
        ("rows.GZ", gzip.compress(BOM + PLAIN)),
        ("rows.zip", PLAIN),
        ("middle.jsonl", BOM + "\n".join(ROWS[:3]).encode() + b"\r\n" + BOM + "\n".join(ROWS[3:]).encode()),
        ("twice.jsonl", BOM + BOM + PLAIN),
        ("joined.gz", gzip.compress(BOM + ROWS[0].encode() + b"\n") + gzip.compress(BOM + PLAIN.split(b"\n", 1)[1])),
    ],
    ids=named,
)
def test_gzip_and_byte_order_marks_are_simply_read(build, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    cache = build(tmp_path / name, strict=True)
    assert cache.meta["sources"][0]["counts"]["rows"] == 6 and cache.meta["sources"][0]["counts"]["bad"] == 0


PREPARE = "python prepare_data.py"
NAMED = {
    "a zip archive": "python -m zipfile -e",
    "a tar archive": "python -m tarfile -e",
    "a pointer of git LFS": "git lfs pull",
    "a web page": "fetch it again",
}


@pytest.mark.parametrize(
    "what, content",
    [
        ("UTF-16 text", PLAIN.decode().encode("utf-16")),
        ("UTF-16 text", b"\xfe\xff" + PLAIN.decode().encode("utf-16-be")),
        ("a zip archive", zipped()),
        ("a tar archive", tarred()),
        ("a tar archive", tarred(tarfile.GNU_FORMAT)),
        ("a tar archive", tarred(tarfile.USTAR_FORMAT, has_signature=False)),
        ("a tar archive", gzip.compress(tarred())),
        ("a parquet file", b"PAR1" + bytes(40) + PLAIN + b"PAR1"),
        ("packed by xz", lzma.compress(PLAIN)),
        ("packed by bzip2", bz2.compress(PLAIN)),
        ("packed by zstd", b"\x28\xb5\x2f\xfd" + bytes(40)),
        ("a pointer of git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("a web page", b"\n<!DOCTYPE html>\n<html><body>Please log in</body></html>\n" + PLAIN),
        ("a JSON array", b"[\n" + ",\n".join(ROWS).encode() + b"\n]\n"),
        ("a JSON array", BOM + json.dumps([json.loads(row) for row in ROWS]).encode()),
    ],
    ids=named,
)
def test_other_types_are_named_with_the_command_that_makes_jsonl(build, tmp_path, what, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.jsonl: {what}.*, not JSONL. .*{NAMED.get(what, PREPARE)}"):
        build(path)
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------------------------------------- the commands work

TEXTS = [json.loads(row)["text"] for row in ROWS]
OBJECTS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]


def follow(remedy):
    """Do in this process what the command of a message does in a shell; the tests have no second to start Python."""
    command = re.search(r"Get the rows with: (.*)", remedy)[1]
    argv = shlex.split(command)
    assert argv[0] == "python"
    if argv[1] == "prepare_data.py":
        assert argv[3:5] == ["--out", "prepared/"]
        (file,), _ = readers.find_files(argv[2:3])
        numbered = chain.from_iterable(readers.parse_block(file, block) for block in readers.read_blocks(file))
        Path("prepared.jsonl").write_text("".join(json.dumps(row) + "\n" for _, row in numbered))
        return Path("prepared.jsonl")
    if argv[1] == "-m":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv[2:6])
            {"zipfile": zipfile, "tarfile": tarfile}[argv[2]].main()
        return next(Path(argv[5]).iterdir())
    program, source, arrow, target = argv[2:6]
    assert argv[1] == "-c" and arrow == ">" and not Path(target).exists()
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # files that the process's end would close
        patch.setattr(sys, "argv", ["-c", source])
        exec(program, {})
    output.flush()
    Path(target).write_bytes(output.buffer.getvalue())
    return Path(target)


def sqlite(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "made.db")) as data, data:
        data.execute("create table rows (text text, id integer)")
        data.executemany("insert into rows values (:text, :id)", OBJECTS)
    return (tmp_path / "made.db").read_bytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def arrow(kind):
    pyarrow = pytest.importorskip("pyarrow")
    table, file = pyarrow.Table.from_pylist(OBJECTS), pyarrow.BufferOutputStream()
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, file)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue().to_pybytes()


def columns(delimiter):
    return "\r\n".join([f"text{delimiter}id", *(f'"{text}"{delimiter}{n}' for n, text in enumerate(TEXTS))]).encode()


CONTENTS = {
    "plain text of lines": "\n".join(TEXTS).encode(),
    "plain text of paragraphs": "\n\n".join(text.replace("comes", "comes\n") for text in TEXTS).encode(),
    "plain text in GB18030": "\n".join(f"第{text}行，船回来了" for text in TEXTS).encode("gb18030"),
    "CSV": BOM + columns(","),
    "CSV of Europe": columns(";"),
    "TSV": columns("\t"),
    "CSV.gz": gzip.compress(columns(",")),
    "CSV in UTF-16": columns(",").decode().encode("utf-16"),
    "array": json.dumps(OBJECTS).encode(),
    "array of texts": json.dumps(TEXTS, indent=1).encode(),
    "array of texts in one line": json.dumps(TEXTS).encode(),
    "indented rows": "\n".join(json.dumps(row, indent=2) for row in OBJECTS).encode(),
    "indented rows with commas": ",\n".join(json.dumps(row, indent=2) for row in OBJECTS[:1]).encode(),
    "object of a list": json.dumps({"version": "1.0", "data": OBJECTS}).encode(),
    "indented object of a list": json.dumps({"data": OBJECTS}, indent=1).encode(),
    "object of columns": json.dumps(
        {key: {str(n): row[key] for n, row in enumerate(OBJECTS)} for key in OBJECTS[0]}
    ).encode(),
    "object of objects": json.dumps({f"q{n}": row for n, row in enumerate(OBJECTS)}).encode(),
    "Python's repr": "\n".join(map(repr, OBJECTS)).encode(),
    "Python's list": repr(OBJECTS).encode(),
    "pickle": pickle.dumps(OBJECTS),
    "NPY of texts": npy(np.array(TEXTS)),
    "web page": ("<html><style>p {}</style>" + "".join(f"<p>{text} &amp; co</p>\n" for text in TEXTS)).encode(),
    "XML": ("<?xml version='1.0'?><rows>" + "".join(f"<row>{text}</row>" for text in TEXTS) + "</rows>").encode(),
    "xz": lzma.compress(PLAIN),
    "bzip2": bz2.compress(PLAIN),
    "gzip twice": gzip.compress(gzip.compress(PLAIN)),
    "zip": zipped(),
    "tar": tarred(),
    "parquet": lambda _: arrow("parquet"),
    "arrow file": lambda _: arrow("file"),
    "arrow stream": lambda _: arrow("stream"),
    "SQLite": sqlite,
}


@pytest.mark.parametrize("what", CONTENTS)
def test_each_command_makes_a_file_that_is_read(build, tmp_path, monkeypatch, what):
    """The command replaces no file, reads any name, and may have to be followed by that of what it unpacks."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"it's $HOME.{'html' if what == 'web page' else 'jsonl'}"
    content = CONTENTS[what]
    path.write_bytes(content(tmp_path) if callable(content) else content)
    names = []
    for _ in range(3):
        try:
            cache = build(path)
            break
        except ValueError as error:
            names.append(str(error))
            path = follow(str(error))
    assert names and all(", not JSONL. Get the rows with: " in name for name in names)
    is_one = what.startswith(("plain text", "web page", "indented rows with commas"))
    assert len(cache) == (1 if is_one else 6), names


@pytest.mark.parametrize(
    "what, content",
    [
        ("numbers in NPY, as of token ids", npy(np.arange(100, dtype=np.uint16))),
        ("binary, perhaps token ids", np.arange(4000, dtype=np.uint16).tobytes()),
        ("binary, perhaps token ids", (np.arange(4000) % 65).astype(np.uint16).tobytes()),
    ],
    ids=["NPY", "GPT-2", "characters"],
)
def test_token_ids_are_decoded_only_by_their_own_tokenizer(build, tmp_path, monkeypatch, what, content):
    monkeypatch.chdir(tmp_path)
    Path("train.bin").write_bytes(content)
    decoder = SimpleNamespace(decode=lambda ids: "<|endoftext|>".join(f"{n} is {ids[n]}" for n in range(6)))
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=lambda name: {"gpt2": decoder}[name]))
    with pytest.raises(ValueError, match=f"{what}.*only for ids of GPT-2") as refused:
        build(tmp_path / "train.bin")
    assert len(build(follow(str(refused.value).replace(" (pip", "\n")))) == 6


@pytest.mark.parametrize(
    "what, content",
    [
        ("a PDF file", b"%PDF-1.4\n1 0 obj\n"),
        ("an image", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
        ("an image", b"\xff\xd8\xff\xe0\x00\x10JFIF"),
        ("sound or video", b"\x00\x00\x00\x18ftypmp42"),
        ("a Word file", b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml..." + b"word/document.xml"),
        ("an old Office file", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("a safetensors file", b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":'),
        ("the error message of a file server", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    ],
)
def test_files_without_rows_are_named(what, content):
    assert describe_file(Path("rows.jsonl"), content).startswith(f"{what}, not JSONL. ")


@pytest.mark.parametrize(
    "head",
    [
        b"# rows of a crawl\n" + PLAIN,
        b"text,label\n" + PLAIN,
        b"{broken\n" * 3,
        b'{"tools": [{"name": "a"}], "messages": []}\n',
        b'{"meta": {"0": 1}, "text": "a"}\n',
        b'{"id": "1", "spans": [{"start": 1}], "text": "a"}\n',
        b'"one text"\n"another"\n',
        b" \n",
    ],
)
def test_files_that_may_hold_rows_are_left_to_the_count_of_rows(head):
    assert describe_file(Path("rows.jsonl"), head) == ""


def test_the_tokenizer_and_the_scores_name_a_file_as_training_does(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(CONTENTS["plain text of lines"])
    with pytest.raises(ValueError, match="story.txt: plain text, not JSONL. Get the rows with: "):
        train_tokenizer.main(["--data_path", str(path), "--save_dir", str(tmp_path / "tokenizer")])
    with pytest.raises(ValueError, match="story.txt: plain text, not JSONL. Get the rows with: "):
        records.read_files([path], 0)
