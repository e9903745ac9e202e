"""A stage can train on a source of batches that is no token cache; the engine does not notice."""

import json
from pathlib import Path

import counting_source
import pytest
from factories import rows, same, weights
from forked import run_ranks

FLAGS = (
    "--device cpu --dtype float32 --batch_size 2 --accumulation_steps 2 --epochs 2 --warmup_iters 1 --log_step 1 "
    "--eval_step 0 --save_step 0"
).split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert counting_source.main([*FLAGS, "--save_dir", str(folder)]) == 0
    return folder


def test_source_of_twenty_lines_is_trained_on_and_validated_with(whole):
    log = rows(whole / "counting.metrics.jsonl")
    assert [row["step"] for row in log] == list(range(7)) and log[-1]["tokens"] == 6 * 4 * 32
    assert log[-1]["val_loss"] < log[0]["val_loss"]


def test_stopped_and_resumed_run_of_another_source_ends_with_the_same_bits(whole, tmp_path):
    argv = [*FLAGS, "--save_dir", str(tmp_path)]
    assert counting_source.main([*argv, "--max_minutes", "1e-9"]) == 75
    assert counting_source.main([*argv, "--resume"]) == 0
    assert same(weights(whole / "counting.pth"), weights(tmp_path / "counting.pth"))
    assert rows(whole / "counting.metrics.jsonl") == rows(tmp_path / "counting.metrics.jsonl")


def test_two_ranks_train_on_another_source_as_one_does(whole, tmp_path):
    half = [*FLAGS, "--accumulation_steps", "1"]
    run_ranks(tmp_path, Path(counting_source.__file__), *half, "--save_dir", tmp_path)
    logs = [rows(folder / "counting.metrics.jsonl") for folder in (whole, tmp_path)]
    for one_rank, two_ranks in zip(*logs, strict=True):
        for column in ("step", "loss", "grad_norm", "tokens"):
            assert one_rank.get(column, 0) == pytest.approx(two_ranks.get(column, 0), rel=1e-4)


def test_resume_key_of_another_source_is_kept(whole, tmp_path):
    argv = [*FLAGS, "--save_dir", str(tmp_path)]
    assert counting_source.main([*argv, "--max_minutes", "1e-9"]) == 75
    with pytest.raises(ValueError, match="belongs to another run: seed was 42, is 7"):
        counting_source.main([*argv, "--resume", "--seed", "7"])
    assert json.loads((whole / "counting.json").read_text())["stage"] == "pretrain"
