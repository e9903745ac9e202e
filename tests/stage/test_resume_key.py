"""A resumed run is the run: parent and held-out documents are the same, and metrics say which step they are of."""

import json
import os
import shutil
import signal

import pytest
from forked import PHASES, finish, run_stage, start_paused, weight_bytes

from engine.checkpoint.weights import load_model
from engine.stage.resume_key import check_unchanged


def test_another_parent_is_refused_by_name_and_a_moved_one_is_the_same(home, tmp_path):
    other = ["--save_dir", str(tmp_path), "--name", "other", "--seed", "7", "--max_steps", "3"]
    assert run_stage(home, *other).code == 0
    shutil.copy(home / "whole/pretrain.pth", tmp_path / "moved.pth")
    shutil.copy(home / "whole/pretrain.json", tmp_path / "moved.json")
    later = ["--save_dir", str(tmp_path), "--max_minutes", "1e-9"]
    assert run_stage(home, "--init_from", "whole/pretrain.pth", *later, stage="SFT").code == 75
    refused = run_stage(home, "--resume", "--init_from", str(tmp_path / "other.pth"), *later, stage="SFT")
    assert refused.code == 2 and "parent was" in refused.output, refused.output
    assert run_stage(home, "--resume", "--init_from", str(tmp_path / "moved.pth"), *later, stage="SFT").code == 75


def test_other_held_out_documents_are_refused_though_as_many_rows(home, tmp_path):
    here = ["--save_dir", str(tmp_path), "--max_minutes", "1e-9"]
    assert run_stage(home, *here, "--val_fraction", "0.1").code == 75
    refused = run_stage(home, *here, "--val_fraction", "0", "--resume")
    assert refused.code == 2 and "held_out.documents was" in refused.output, refused.output
    assert "(other rows are held out than before: validation would hold rows that were trained on)" in refused.output


def test_a_state_of_another_encoding_is_refused_with_the_reason():
    keys = [{"encoding": version, "held_out": {"documents": 64, "content": str(version)}} for version in (4, 5)]
    with pytest.raises(
        ValueError, match="encoding was 4, is 5; held_out.content was '4', is '5' .*reads or holds out rows otherwise"
    ):
        check_unchanged(*keys, 5, "results/pretrain.state")


def data_key(*files):
    """Return the part of the resume key that files, (content, name, rows) each, decide."""
    return {
        "data": [{"content": content, "documents": rows} for content, _, rows in files],
        "data_files": [[name, rows] for _, name, rows in files],
        "held_out": {"content": "".join(content for content, _, _ in files)},
        "steps": sum(rows for _, _, rows in files),
    }


A, B = ("a-200", "a.jsonl", 200), ("b-9", "b.jsonl", 9)


@pytest.mark.parametrize(
    "before, now, message",
    [
        ([A, B], [B, A], "the files are in another order, b.jsonl, a.jsonl; it was a.jsonl, b.jsonl"),
        ([A], [("a-201", "a.jsonl", 201)], "a.jsonl has 201 rows, had 200"),
        ([A, B], [A, ("c-9", "b.jsonl", 9)], "b.jsonl has other content in as many rows"),
        ([A], [A, B], "b.jsonl is new"),
        ([A, B], [B], "a.jsonl is missing"),
        ([A], [A, A], "there are 2 files of 400 documents, there were 1 files of 200 documents"),
    ],
)
def test_data_that_changed_is_told_by_the_names_of_its_files(before, now, message):
    with pytest.raises(ValueError, match=rf"results belongs to another run: {message}\. Use the old flags"):
        check_unchanged(data_key(*before), data_key(*now), 5, "results")


def test_entries_of_a_dict_that_differ_are_told_alone():
    keys = [
        {"config": {"dim": 64, "rope_parameters": {"factor": factor, "rope_type": "llama3"}}} for factor in (2.0, 4.0)
    ]
    with pytest.raises(ValueError, match=r"run: config.rope_parameters.factor was 2.0, is 4.0. Use the old flags"):
        check_unchanged(*keys, 5, "results")


def test_file_that_was_renamed_is_the_same_data():
    check_unchanged(data_key(A), data_key(("a-200", "moved.jsonl", 200)), 5, "results")


def test_row_more_is_told_when_a_run_resumes(home, tmp_path):
    rows = (home / "pretrain.jsonl").read_text("utf-8").splitlines(keepends=True)
    here = ["--save_dir", str(tmp_path), "--max_minutes", "1e-9", "--data_path", str(tmp_path / "a.jsonl")]
    (tmp_path / "a.jsonl").write_text("".join(rows[:-1]), encoding="utf-8")
    assert run_stage(home, *here).code == 75
    (tmp_path / "a.jsonl").write_text("".join(rows), encoding="utf-8")
    refused = run_stage(home, *here, "--resume")
    assert refused.code == 2 and "another run: a.jsonl has 60 rows, had 59. Use" in refused.output, refused.output


def test_micro_batches_that_lay_documents_out_in_another_way_are_refused(home, tmp_path):
    """On the CPU the rows of a micro-batch are joined into one line, which documents fill."""
    here = ["--save_dir", str(tmp_path), "--max_minutes", "1e-9"]
    assert run_stage(home, *here).code == 75
    refused = run_stage(home, *here, "--resume", "--batch_size", "4", "--accumulation_steps", "1")
    assert refused.code == 2 and "row_len was 128, is 256" in refused.output, refused.output


def test_a_run_stopped_by_a_signal_says_which_step_its_metrics_are_of(home, tmp_path):
    process = start_paused(
        home, "--save_dir", str(tmp_path), "--save_step", "0", "--eval_step", "0", prepare=PHASES["in_step"]
    )
    os.kill(process.pid, signal.SIGTERM)
    done = finish(process)
    assert done.code == 75 and "held-out metrics are of step 0" in done.output, done.output
    meta = json.loads((tmp_path / "pretrain.json").read_text("utf-8"))
    assert meta["step"] > meta["validated_at_step"] == 0


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        '{"config": 5}',
        '{"config": {"rope_theta": "x"}}',
        "[" * 100_000,
        '{"config": {"rope_parameters": 3}}',
        '{"config": {"dim": 0}}',
        "",
    ],
)
def test_a_json_that_no_run_wrote_beside_weights_is_one_line(home, content, tmp_path):
    shutil.copy(home / "whole/pretrain.pth", tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: "):
        load_model(tmp_path / "a.pth")


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(home, tmp_path):
    argv = ["--save_dir", str(tmp_path), "--resume", "--max_minutes", "1e-9"]
    first = run_stage(home, *argv)
    assert first.code == 75 and "stopped by --max_minutes; " in first.output and "from step 1" in first.output
    while run_stage(home, *argv).code == 75:
        pass
    assert weight_bytes(tmp_path) == weight_bytes(home / "whole")
