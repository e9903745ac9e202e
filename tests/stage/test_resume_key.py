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
    assert refused.code == 2 and "held_out was" in refused.output, refused.output
    assert "(other rows are held out than before: validation would hold rows that were trained on)" in refused.output


def test_a_state_of_another_encoding_is_refused_with_the_reason():
    keys = [{"encoding": version, "held_out": {"documents": 64, "content": str(version)}} for version in (4, 5)]
    with pytest.raises(ValueError, match="encoding was 4, is 5; held_out was .*reads or holds out rows otherwise"):
        check_unchanged(*keys, 5, "results/pretrain.state")


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
