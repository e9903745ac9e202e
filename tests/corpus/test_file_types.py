"""Files are known by their first bytes, never by their names: read, or named with the command that makes it JSONL."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest

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
    with pytest.raises(ValueError, match=f"rows.jsonl: {what}.*, not JSONL. .*{NAMED[what]}"):
        build(path)
    assert not (tmp_path / "cache").exists()
