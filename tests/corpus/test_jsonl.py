"""JSONL is read as it comes, or the file is named."""

import gzip

import pytest

from engine.corpus import jsonl


def test_a_gz_file_that_breaks_off_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "abc"}\n' * 5000)[:-20])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: damaged"):
        list(jsonl.blocks(path))
