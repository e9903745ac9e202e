"""What a stage makes of its command line: the sample's numbers, contradictions, what was typed."""

import pytest
from making import SHAPE, SHORT, chosen_by

import distill
import pretrain
import SFT
from engine.options import SAMPLE


def test_torchrun_is_not_asked_to_start_again_what_max_minutes_stopped(folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="--max_minutes.*--max-restarts=0"):
        pretrain.main([*SHAPE, *SHORT, "--max_minutes", "5"])


def test_without_data_the_bundled_sample_is_used_and_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = chosen_by(pretrain, ["--learning_rate", "0.5"])
    said = capsys.readouterr().out.splitlines()
    assert chosen.data.on_sample
    assert chosen.data.paths == [SAMPLE / "pretrain.jsonl"]
    assert chosen.training.learning_rate == 0.5  # what was typed stays
    assert chosen.training.max_steps == 40
    assert chosen_by(pretrain, ["--data_path", str(SAMPLE / "pretrain.jsonl")]).data.on_sample  # named or not
    assert len(said) == 2
    assert "bundled sample" in said[0]
    assert "modelscope download --dataset Harris/pretrainSpongeBob pretrain.jsonl --local_dir . (or" in said[1]


@pytest.mark.parametrize("script", [pretrain, SFT, distill], ids=lambda script: script.__name__)
def test_epochs_that_were_typed_are_not_overruled_by_the_steps_that_suit_the_sample(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chosen_by(script, []).training.max_steps > 0
    for words in (["--epochs", "1"], ["--epochs=3"]):
        assert chosen_by(script, words).training.max_steps == 0


def test_two_flags_that_name_different_trackers_are_refused():
    with pytest.raises(ValueError, match="--use_wandb.*--tracker tensorboard.*choose one"):
        pretrain.main(["--use_wandb", "--tracker", "tensorboard"])
    assert chosen_by(pretrain, ["--use_wandb", "--tracker", "wandb"]).output.service == "wandb"
