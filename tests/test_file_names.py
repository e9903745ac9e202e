"""Names that begin files, on this system and on the one that is not at hand."""

import argparse
import ntpath
import sys

import pytest

from engine import files
from engine.checkpoint import weights
from engine.corpus import worker_pool
from engine.log.tracker import Tracker
from engine.options import Output
from engine.stage import lock

KEPT = [
    "pretrain",
    "SFT_long",
    "v1.5",
    "run 2",
    "结果",
    "a{b}",
    "con2",
    "console",
    "lpt",
    "null",
    "auxiliary.1",
    "-x",
    "é",
]
SEPARATED = ["a/b", "../a", "a\\b", "..\\a", "\\\\server\\share", "/a", "", " ", ".", "..", "a\nb", "a\0"]
ONLY_ELSEWHERE = [
    "a:b",
    "C:a",
    "a*",
    "a?",
    'a"b',
    "<a>",
    "a|b",
    "CON",
    "con",
    "nul.1",
    "Prn",
    "AUX",
    "COM1",
    "lpt9.x",
    "CONIN$",
]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_a_plain_name_is_one_part_of_a_path_on_either_system(name, windows):
    assert files.file_name(name, windows) == name
    for ending in (".pth", ".state", ".metrics.jsonl", ".lock"):
        assert ntpath.split(name + ending) == ("", name + ending) and not ntpath.splitdrive(name)[0]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", SEPARATED)
def test_a_name_that_leaves_its_folder_is_refused_on_either_system(name, windows):
    with pytest.raises(argparse.ArgumentTypeError):
        files.file_name(name, windows)


@pytest.mark.parametrize("name", ONLY_ELSEWHERE)
def test_what_only_windows_does_not_take_is_refused_there(name):
    assert files.file_name(name, windows=False) == name
    with pytest.raises(argparse.ArgumentTypeError):
        files.file_name(name, windows=True)


@pytest.mark.parametrize("name", ["v1.5", "a{b}", "{}", "%s", "a.metrics.jsonl"])
def test_files_and_lines_of_a_run_have_its_whole_name(name, tmp_path, capsys):
    output = Output(name=name, save_dir=str(tmp_path))
    tracker = Tracker(output, {}, steps=4)
    tracker.log({"step": 2, "loss": 1.0})
    weights.save_weights(output.weights, {}, {"stage": "pretrain"})
    with lock.hold_lock(output.weights.with_suffix(".lock")):
        made = {path.name for path in tmp_path.iterdir()}
    assert made == {f"{name}.metrics.jsonl", f"{name}.pth", f"{name}.json", f"{name}.lock", f"{name}.lock.held"}
    assert f"{name} step 2 of 4: loss 1.000" in capsys.readouterr().err


def test_runs_whose_names_begin_alike_have_logs_of_their_own_at_a_service(tmp_path, monkeypatch):
    from engine.log import trackers

    shown = []
    monkeypatch.setitem(
        trackers.SERVICES, "tensorboard", lambda name, *rest: shown.append(name) or trackers.NoOpTracker()
    )
    for name in ("v1.5", "v1.6"):
        Tracker(Output(name=name, save_dir=str(tmp_path), tracker="tensorboard"), {}, steps=4).close()
    assert shown == ["v1.5", "v1.6"]


def test_two_machines_with_one_process_number_write_files_of_their_own(tmp_path):
    made = []
    for _ in range(2):
        files.atomic_write(tmp_path / "digests.json", lambda path: (path.write_text("{}"), made.append(path.name)))
    assert len(set(made)) == 2 and [path.name for path in tmp_path.iterdir()] == ["digests.json"]


def test_windows_can_wait_for_61_processes_and_is_asked_for_no_more(monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", lambda workers, *rest: asked.append(workers))
    worker_pool._open(64, None, ())
    worker_pool._open(8, None, ())
    assert asked == [61, 8]
