"""Files are known by their first bytes, never by their names: read, or named with the command that makes it JSONL."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
import zipfile

import pytest

from dataset import PretrainDataset
from engine.corpus import digests, jsonl
from engine.corpus.token_cache import open_or_build

ROWS = [json.dumps({"text": f"The boat number {number} comes home 船"}, ensure_ascii=False) for number in range(6)]
PLAIN = "\n".join(ROWS).encode() + b"\n"
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def build(small, tmp_path, without_tiktoken):
    return lambda *paths, **options: open_or_build(
        paths, PretrainDataset, small, cache_dir=tmp_path / "cache", **options
    )


def named(value):
    return value if isinstance(value, str) else ""


def zipped():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("test.jsonl", PLAIN)
    return packed.getvalue()


def tarred(kind=tarfile.PAX_FORMAT, mark=True):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as archive:
        info = tarfile.TarInfo("test.jsonl")
        info.size = len(PLAIN)
        archive.addfile(info, io.BytesIO(PLAIN))
    content = bytearray(packed.getvalue())
    if not mark:  # as tar wrote it before 1988
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
    assert cache.meta["rows"] == 6 and cache.meta["bad"] == 0


NAMED = {
    "UTF-16 text": "iconv -f UTF-16 ",
    "a zip archive": "unzip",
    "a tar archive": "tar -xf",
    "a parquet file": "read_parquet",
    "packed by xz": "xz -dc",
    "packed by bzip2": "bzip2 -dc",
    "packed by zstd": "zstd -dc",
    "a pointer of git LFS": "git lfs pull",
    "a web page": "Fetch it again",
    "a JSON array": "jq -c '.\\[\\]'",
}


@pytest.mark.parametrize(
    "what, content",
    [
        ("UTF-16 text", PLAIN.decode().encode("utf-16")),
        ("UTF-16 text", b"\xfe\xff" + PLAIN.decode().encode("utf-16-be")),
        ("a zip archive", zipped()),
        ("a tar archive", tarred()),
        ("a tar archive", tarred(tarfile.GNU_FORMAT)),
        ("a tar archive", tarred(tarfile.USTAR_FORMAT, mark=False)),
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
def test_what_is_no_jsonl_is_named_with_the_command_that_makes_it_one(build, tmp_path, what, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.jsonl: {what}.*, not JSONL. .*{NAMED[what]}"):
        build(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_refused_before_it_is_read(build, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read, write = os.pipe()
    tried = []

    def attempt(path):
        with pytest.raises(ValueError, match="a pipe or a device"):
            build(path)
        tried.append(path)

    for path in (tmp_path / "pipe", f"/dev/fd/{read}", "/dev/zero"):
        if os.path.exists(path):
            thread = threading.Thread(target=attempt, args=[path], daemon=True)
            thread.start()
            thread.join(10)
            assert tried[-1:] == [path], f"{path} hangs"
    os.close(read), os.close(write)


def test_a_cache_beside_other_data_is_called_one(build, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(PLAIN)
    folder = build(tmp_path / "rows.jsonl").folder
    with pytest.raises(ValueError, match="a token cache, which a training stage reads alone"):
        build(folder, folder)


def test_long_names_and_names_that_are_no_text_are_taken(build, tmp_path):
    for name in ("n" * 249 + ".jsonl", "船" * 80 + ".jsonl", os.fsdecode(b"da\xffta.jsonl")):
        (tmp_path / name).write_bytes(PLAIN)
        assert build(tmp_path / name).meta["rows"] == 6


# ------------------------------------------------------------------------------------------------ files that change


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"path": 5}', b"\xff\xfe", b'{"a": [1, 2, {}]}', b"null"])
def test_a_book_of_digests_that_cannot_be_read_is_written_anew(build, tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(PLAIN)
    first = build(tmp_path / "rows.jsonl")
    (tmp_path / "cache/digests.json").write_bytes(content)
    assert build(tmp_path / "rows.jsonl").folder == first.folder
    assert list(json.loads((tmp_path / "cache/digests.json").read_text())) == [str(tmp_path / "rows.jsonl")]


def test_a_file_that_grows_while_it_is_read_leaves_no_cache_under_its_old_content(build, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(PLAIN)
    blocks = jsonl.read_blocks

    def growing(path, *advance):
        with open(path, "ab") as file:
            file.write(PLAIN)
        return blocks(path, *advance)

    monkeypatch.setattr("engine.corpus.token_cache.read_blocks", growing)
    with pytest.raises(ValueError, match="rows.jsonl: changed while it was read"):
        build(path)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["digests.json"]
    assert digests.content_digest(path, tmp_path / "cache").startswith(f"{2 * len(PLAIN)}:")


def test_a_cache_of_an_older_encoding_is_refused_with_the_way_out(build, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(PLAIN)
    folder = build(tmp_path / "rows.jsonl").folder
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(
        json.dumps({"encoding": 2, "tokenizer": "x", "rows": 6, "bad": 0, "examples": []})
    )
    with pytest.raises(ValueError, match="made with encoding 2, this run has 4; give the JSONL file instead"):
        build(folder)
    assert meta["encoding"] == 4
