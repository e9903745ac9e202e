"""The files that a stage reads."""

import gzip
import os
from pathlib import Path

import pytest

from engine import options
from engine.corpus import source


@pytest.mark.skipif(os.name != "posix", reason="modelscope is replaced by a shell script")
def test_a_download_uses_this_pythons_program_and_reports_failures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an environment that was not activated
    monkeypatch.setattr(source.sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    with pytest.raises(ValueError, match="pip install modelscope"):
        source.download("sft_512.jsonl")
    program = tmp_path / "scripts/modelscope"
    program.parent.mkdir()
    for script, words in (("exit 3", "ended with code 3"), ("exit 0", "is not there after the download")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(ValueError, match=words):
            source.download("sft_512.jsonl")
    program.write_text('#!/bin/sh\necho "$@" > sft_512.jsonl\n')
    source.download("sft_512.jsonl")
    assert Path("sft_512.jsonl").read_text().split() == options.DOWNLOAD.format("sft_512.jsonl").split()[1:]


ROWS = b'{"text": "a boat"}\n' * 3


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Please log in</html>",
        ROWS[:-8],
        gzip.compress(ROWS, mtime=0)[:-9],
        b"no row\n",
        b"",
        b"\x00" * 99,
    ],
    ids=["web page", "cut", "cut gzip", "no row", "empty", "zeros"],
)
def test_damaged_download_is_fetched_again_by_the_same_command(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path("pretrain.jsonl")
    path.write_bytes(content)
    fetched = []

    def fetch(name):
        assert not path.exists()  # modelscope would keep it
        fetched.append(name)
        path.write_bytes(ROWS)

    monkeypatch.setattr(source, "download", fetch)
    data = options.Data(download=True, data_file="pretrain.jsonl")
    for _ in range(2):
        assert source.files_of(data) == [path]
    assert fetched == ["pretrain.jsonl"] and Path("pretrain.jsonl.damaged").read_bytes() == content
    assert "pretrain.jsonl: " in capsys.readouterr().out


@pytest.mark.parametrize("content", [ROWS, ROWS[:-1], gzip.compress(ROWS, mtime=0), b"broken\n" + ROWS])
def test_file_that_can_be_read_is_not_fetched_again(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pretrain.jsonl").write_bytes(content)
    monkeypatch.setattr(source, "download", None)
    source.files_of(options.Data(download=True, data_file="pretrain.jsonl"))
