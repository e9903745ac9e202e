"""The files that a stage reads."""

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
