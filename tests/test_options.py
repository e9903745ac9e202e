"""The flags that training stages share: defaults that depend on others, and flags that a run would not read."""

from pathlib import Path

import pytest

import distill
import pretrain
import SFT
from engine.corpus import source


def test_explicit_epochs_take_precedence_over_the_steps_of_the_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for script in (pretrain, SFT, distill):
        assert script.parse_args([]).training.max_steps > 0
        assert script.parse_args(["--epochs", "1"]).training.max_steps == 0
        assert script.parse_args(["--epochs=3"]).training.max_steps == 0


@pytest.mark.parametrize(
    "argv, name",
    [
        ("--epochs 3 --max_steps 5", "epochs"),
        ("--parallel fsdp", "parallel"),
        ("--wandb_project mine", "wandb_project"),
        ("--tracker tensorboard --wandb_project mine", "wandb_project"),
        ("--data_path . --num_workers 1", "num_workers"),
        ("--data_path . --cache_dir c", "cache_dir"),
        ("--download --data_path x.jsonl", "download"),
    ],
)
def test_flag_that_this_run_would_not_read_is_refused(argv, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("meta.json").write_text("{}")  # a finished cache
    with pytest.raises(ValueError, match=f"--{name} would change nothing"):
        pretrain.parse_args(argv.split())


def test_help_of_the_long_stage_shows_its_defaults(capsys):
    with pytest.raises(SystemExit):
        SFT.main(["--long", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "tokens in a row (default: 1024)" in output and "(default: SFT_long)" in output


def test_flags_that_name_different_trackers_are_refused():
    with pytest.raises(ValueError, match="--use_wandb.*--tracker tensorboard.*choose one"):
        pretrain.parse_args(["--use_wandb", "--tracker", "tensorboard"])
    assert pretrain.parse_args(["--use_wandb", "--tracker", "wandb"]).output.service == "wandb"


def test_missing_files_alone_are_downloaded_and_by_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    downloaded = []
    monkeypatch.setattr(source, "download", downloaded.append)
    data = pretrain.parse_args(["--download"]).data
    source.files_of(data)
    Path("pretrain.jsonl").write_text('{"text": "a boat"}\n')
    assert source.files_of(data) == [Path("pretrain.jsonl")] and downloaded == ["pretrain.jsonl"]
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="--download: not by several processes.*modelscope download"):
        source.files_of(distill.parse_args(["--download"]).data)
