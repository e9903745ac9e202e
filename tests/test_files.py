"""Files are written whole or not at all, under names that every system accepts."""

import argparse
import errno
import json
import math
import ntpath
import os
import resource

import pytest

from engine import files
from engine.checkpoint.weights import save_weights
from engine.log.tracker import Tracker
from engine.options import Output
from engine.stage import lock, resume


def test_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("old")

    def break_off(temporary):
        temporary.write_text("hal")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.atomic_write(path, break_off)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    files.atomic_write(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_temp_files_of_two_machines_have_different_names(tmp_path):
    names = []
    for _ in range(2):
        files.atomic_write(tmp_path / "a.json", lambda path: (path.write_text("{}"), names.append(path.name)))
    assert len(set(names)) == 2 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_temp_files_of_a_killed_run_are_removed_and_no_others(tmp_path):
    own = [
        "a.pth.tmp-1234",
        "a.json.tmp-0f",
        "a.metrics.jsonl.tmp-0f",
        "a.rows.npy.tmp-0f",
        "a.state/00000003.tmp/run.pt",
    ]
    others = ["a.b.pth.tmp-1", "b.pth.tmp-1", "a.pth", "a.pth.tmp", "a.state/00000002/run.pt", "aXpth.tmp-1", "A.txt"]
    for name in own + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    output = Output(name="a", save_dir=str(tmp_path), resume="auto")
    resume.Start(output, None, "run", 1, resume.ResumePoint(tmp_path / "elsewhere/00000002", None)).clear()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(others)


@pytest.mark.parametrize("code, is_raised", [(errno.EIO, True), (errno.EINVAL, False), (errno.ENOTSUP, False)])
def test_failing_disk_is_an_error_but_not_a_folder_without_sync(code, is_raised, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    try:
        files.sync_folder(tmp_path)
    except OSError as error:
        assert is_raised and error.errno == code
    else:
        assert not is_raised


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    row = {"norm": math.nan, "more": [math.inf, 1.5], "name": "结果\udcff"}
    assert files.to_json(row) == '{"norm": null, "more": [null, 1.5], "name": "结果'.encode() + b'\\udcff"}\n'
    files.write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, -math.inf], "b": {"c": math.inf}})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content == {"a": [None, 1.5, None], "b": {"c": None}}


PLAIN = "pretrain|SFT_long|v1.5|run 2|结果|a{b}|con2|console|lpt|null|auxiliary.1|-x|é".split("|")
SEPARATED = ["a/b", "../a", "a\\b", "..\\a", "\\\\server\\share", "/a", "", " ", ".", "..", "a\nb", "a\0"]
NOT_ON_WINDOWS = 'a:b C:a a* a? a"b <a> a|b CON con nul.1 Prn AUX COM1 lpt9.x CONIN$'.split()


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_name_is_one_part_of_a_path_on_either_system(name, windows):
    assert files.file_name(name, windows) == name
    for ending in (".pth", ".state", ".metrics.jsonl", ".lock"):
        assert ntpath.split(name + ending) == ("", name + ending) and not ntpath.splitdrive(name)[0]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", SEPARATED)
def test_name_that_leaves_its_folder_is_refused(name, windows):
    with pytest.raises(argparse.ArgumentTypeError):
        files.file_name(name, windows)


@pytest.mark.parametrize("name", NOT_ON_WINDOWS)
def test_name_that_windows_does_not_accept_is_refused_there(name):
    assert files.file_name(name, windows=False) == name
    with pytest.raises(argparse.ArgumentTypeError):
        files.file_name(name, windows=True)


@pytest.mark.parametrize("name", ["v1.5", "a{b}", "{}", "%s", "a.metrics.jsonl"])
def test_files_and_lines_of_a_run_have_its_whole_name(name, tmp_path, capsys):
    output = Output(name=name, save_dir=str(tmp_path))
    tracker = Tracker(output, {}, steps=4)
    tracker.log({"step": 2, "loss": 1.0})
    save_weights(output.weights, {}, {"stage": "pretrain"})
    with lock.hold_lock(output.weights.with_suffix(".lock")):
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.metrics.jsonl", f"{name}.pth", f"{name}.json", f"{name}.lock", f"{name}.lock.held"}
    assert f"{name} step 2 of 4: loss 1.000" in capsys.readouterr().err


def test_appended_rows_begin_a_line_of_their_own(tmp_path):
    file = tmp_path / "rows.jsonl"
    for before in (None, b"", b'{"a": 1}\n', b'{"a": 1}'):
        if before is not None:
            file.write_bytes(before)
        files.append_rows(file, [{"text": "你"}, {"text": "\udcff"}])
        assert [json.loads(line) for line in file.read_bytes().splitlines()][-2:] == [
            {"text": "你"},
            {"text": "\udcff"},
        ]
        assert file.read_bytes().count(b"\n") == 2 + bool(before)


def test_failed_append_leaves_no_part_of_a_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 100)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write {file}: File too large"):
            files.append_rows(file, [{"text": "y" * 2000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert file.read_bytes() == b"x" * 100


def test_link_to_nothing_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link already exists"):
        files.check_absent(tmp_path / "link")
