"""The type of a file, by its first bytes and never by its name."""

import re
import tarfile

HEADER_BYTES = 512  # bytes; a tar header is as long
GZIP = b"\x1f\x8b"
PANDAS = "python -c \"import pandas; pandas.read_{}({{name}}).to_json('{{out}}.jsonl', orient='records', lines=True)\""

# (pattern of the first bytes, name, command that turns it into JSONL)
FILE_SIGNATURES = [
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {path} > {out}.utf8.jsonl"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {path} > {out}.utf8.jsonl"),
    (rb"(?:[\x09-\x7e]\x00){4}", "UTF-16 text", "iconv -f UTF-16LE -t UTF-8 {path} > {out}.utf8.jsonl"),
    (rb"(?:\x00[\x09-\x7e]){4}", "UTF-16 text", "iconv -f UTF-16BE -t UTF-8 {path} > {out}.utf8.jsonl"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", "unzip {path}"),
    (rb"PAR1", "a parquet file", PANDAS.format("parquet")),
    (rb"ARROW1|FEA1", "an arrow file", PANDAS.format("feather")),
    (rb"\xfd7zXZ\x00", "packed by xz", "xz -dc {path} > {out}.jsonl"),
    (rb"BZh[1-9]1AY&SY", "packed by bzip2", "bzip2 -dc {path} > {out}.jsonl"),
    (rb"[\x28\x22-\x27]\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "packed by zstd", "zstd -dc {path} > {out}.jsonl"),
    (rb"\x04\x22\x4d\x18", "packed by lz4", "lz4 -dc {path} > {out}.jsonl"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z e {path}"),
    (rb"Rar!\x1a\x07", "a rar archive", "unrar e {path}"),
    (rb"\x1f\x8b", "packed by gzip twice", "gzip -dc {path} > {out}.gz"),
    (rb"version https://git-lfs", "a pointer of git LFS, without the file's content", "git lfs pull"),
    (rb"(?:/annex/objects|(?:\.\./)*\.git/annex)", "a pointer of git-annex", "git annex get {path}"),
    (rb"\s*(?:<!--.*?-->\s*)*(?i:<!doctype html|<html|<head|<\?xml)", "a web page (of an error or a login?)", ""),
    (rb"\s*\[\s*\{", "a JSON array", "jq -c '.[]' {path} > {out}.lines.jsonl"),
]  # fmt: skip


def detect_file_type(head: bytes) -> tuple[str, str] | None:
    """Return (name, remedy) of a file that begins so; None where it may be JSONL."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    for pattern, name, command in FILE_SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return name, f"Get the rows with: {command}" if command else "Fetch it again"
    if _is_tar(head):
        return "a tar archive", "Get the rows with: tar -xf {path}"
    return None


def _is_tar(head: bytes) -> bool:
    """Check the sum of bytes: old archives have no signature."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
