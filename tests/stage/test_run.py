"""Training through the stages' real main(): what a run refuses, makes and leaves."""

import json
from pathlib import Path

import pytest
import torch
from making import SHAPE, SHORT, SMALL, log_of, torchrun, weights

import distill
import eval_model
import pretrain
import SFT
from engine import loop
from engine.checkpoint import state
from engine.flags import ROOT
from engine.machine import runtime


def test_all_stages_run_and_chain_without_renames(folder):
    pretrain.main([*SHAPE, *SHORT])
    SFT.main(SHORT)
    SFT.main(["--long", *SHORT])
    distill.main(SHORT)
    distill.main(["--long", *SHORT])
    for name, parent in (("SFT", "pretrain"), ("SFT_long", "SFT"), ("distill", "SFT"), ("distill_long", "SFT_long")):
        meta = json.loads((folder / f"results/{name}.json").read_text("utf-8"))
        assert Path(meta["parent"]).name == f"{parent}.pth"
        assert meta["val_loss"] < meta["before"]["val_loss"]
        assert meta["config"]["dim"] == 64
        assert (folder / f"results/{name}.png").stat().st_size > 1000
    last = log_of(folder / "results/distill.metrics.jsonl")[-1]
    assert {"loss", "weighted_loss", "tag_loss", "val_tag_loss", "sample"} <= last.keys()
    assert weights("results/pretrain.pth")["tok_embeddings.weight"].dtype == torch.float32


@pytest.mark.parametrize("save_step", ["0", "4", "100"])
def test_the_end_of_a_run_is_saved_also_where_no_save_is_due(folder, save_step):
    pretrain.main([*SHAPE, *SHORT, *SMALL, "--save_step", save_step])
    assert json.loads((folder / "results/pretrain.json").read_text("utf-8"))["step"] == 6
    assert state.find_newest(folder / "results/pretrain.state").name == "00000006"


def test_the_published_weights_are_the_trained_ones_to_the_last_bit(folder, monkeypatch):
    real, trained = loop.train_step, {}

    def watched(run, *arguments):
        try:
            return real(run, *arguments)
        finally:
            trained.update({name: weight.detach().clone() for name, weight in run.model.named_parameters()})

    monkeypatch.setattr(loop, "train_step", watched)
    pretrain.main([*SHAPE, *SHORT, *SMALL])
    published = weights("results/pretrain.pth")
    assert all(torch.equal(published[name], weight) for name, weight in trained.items())
    assert published.keys() == trained.keys() | {"output.weight"}


def test_nothing_is_overwritten_unasked(folder):
    pretrain.main([*SHAPE, *SHORT])
    with pytest.raises(ValueError, match="--resume.*--name.*--overwrite"):
        pretrain.main([*SHAPE, *SHORT])
    pretrain.main([*SHAPE, *SHORT, "--overwrite"])


def test_a_shape_flag_that_contradicts_the_checkpoint_is_refused(folder):
    pretrain.main([*SHAPE, *SHORT])
    with pytest.raises(ValueError, match="--n_heads 8.*says 4"):
        SFT.main([*SHORT, "--n_heads", "8"])


@pytest.mark.parametrize("main, argv, command", [
    (SFT.main, SHORT, "python pretrain.py"),
    (SFT.main, ["--long", *SHORT], "python SFT.py"),
    (distill.main, SHORT, "python SFT.py"),
    (distill.main, ["--long", *SHORT], "python SFT.py --long"),
    (eval_model.main, ["--model_mode", "2", "--long"], "python distill.py --long"),
])  # fmt: skip
def test_a_missing_checkpoint_says_which_command_makes_it(folder, main, argv, command):
    with pytest.raises(ValueError, match=rf"Make it with: {command} \("):
        main(argv)


def test_processes_that_would_train_on_different_data_are_refused(folder, monkeypatch):
    def gather(self, value):
        return [value, value | {"data": []}] if isinstance(value, dict) else [value]

    monkeypatch.setattr(runtime.Runtime, "gather", gather)
    with pytest.raises(ValueError, match="processes 0 and 1 differ in data: every machine needs the same"):
        pretrain.main([*SHAPE, *SHORT, *SMALL, "--name", "apart"])
    assert not (folder / "results/apart.pth").exists()


def test_dropout_differs_between_processes_whose_weights_are_the_same(folder):
    torchrun(ROOT / "tests/stage/seeded_ranks.py", *SHAPE, *SHORT, *SMALL, "--dropout", "0.1", "--seed", "7")
    assert [Path(f"seed{rank}").read_text() for rank in range(2)] == ["7", "8"]
