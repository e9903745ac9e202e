"""The stages' real main(): they chain, resume to the bit, refuse what would be lost."""

import json
from pathlib import Path

import pytest
import torch
from factories import (
    SHAPE,
    SHORT,
    SMALL,
    rows,
    same,
    tensors,
    weights,
    write_corpus,
)

import distill
import eval_model
import pretrain
import SFT
from engine import cli, loop, options
from engine.checkpoint import training_state
from engine.files import read_log

# One step of a smaller model, where a test is about what a run finds and leaves.
ONE_STEP = [*SHAPE, *SHORT, *SMALL, *"--max_seq_len 64 --max_steps 1 --warmup_iters 0".split()]


@pytest.mark.usefixtures("loss_curve")
def test_all_stages_run_and_chain_without_renames(folder):
    pretrain.main([*SHAPE, *SHORT])
    SFT.main(SHORT)
    SFT.main(["--long", *SHORT])
    distill.main(SHORT)
    distill.main(["--long", *SHORT])
    for name, parent in (("SFT", "pretrain"), ("SFT_long", "SFT"), ("distill", "SFT"), ("distill_long", "SFT_long")):
        meta = json.loads((folder / f"results/{name}.json").read_text("utf-8"))
        before = json.loads((folder / f"results/{parent}.json").read_text("utf-8"))
        assert Path(meta["parent"]).name == f"{parent}.pth"
        assert meta["ancestors"] == [before["weights"], *before["ancestors"]]
        assert meta["log_ends"] == read_log(folder / f"results/{name}.metrics.jsonl")[-1:]
        assert meta["val_loss"] < meta["initial_validation"]["val_loss"]
        assert meta["config"]["dim"] == 64
        assert (folder / f"results/{name}.png").stat().st_size > 1000
    last = rows(folder / "results/distill.metrics.jsonl")[-1]
    assert {"loss", "weighted_loss", "tag_loss", "val_tag_loss", "sample"} <= last.keys()
    assert weights("results/pretrain.pth")["tok_embeddings.weight"].dtype == torch.float32


@pytest.mark.usefixtures("quick")
def test_stages_train_in_contexts_that_the_first_prompt_would_fill(folder):
    write_corpus(folder, 30)
    short = [*SHORT, "--max_steps", "1", "--warmup_iters", "0"]
    assert pretrain.main([*SHAPE, *short, "--max_seq_len", "2"]) == 0
    assert rows(folder / "results/pretrain.metrics.jsonl")[-1]["sample"]
    assert SFT.main([*short, "--max_seq_len", "53"]) == 0  # the first label of most conversations is number 53


ALL_ON = [
    "--optimizer",
    "muon",
    "--schedule",
    "wsd",
    "--z_loss",
    "1e-4",
    "--loss_chunk",
    "50",
    "--dtype",
    "bfloat16",
    "--activation_checkpointing",
]


@pytest.mark.parametrize(
    "cut, words", [("3", []), ("5", []), ("5", ALL_ON)], ids=["at a save", "between log rows", "with every option on"]
)
def test_resumed_run_is_bitwise_the_one_that_was_never_stopped(folder, cut, words, monkeypatch):
    words = ["--dropout", "0.1", *words]  # draws on the random state
    pretrain.main([*SHAPE, *SHORT, *words, "--name", "whole"])
    options = [*SHAPE, *SHORT, *words, "--name", "cut", "--save_step", cut]
    real, calls = loop.train_step, []

    def dies(*arguments):
        if len(calls) == int(cut):
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(options)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    pretrain.main([*options, "--resume"])
    assert same(weights("results/whole.pth"), weights("results/cut.pth"))
    assert same(*(tensors(folder / f"results/{name}.state") for name in ("whole", "cut")))
    assert rows(folder / "results/whole.metrics.jsonl") == rows(folder / "results/cut.metrics.jsonl")


@pytest.mark.parametrize("save_step", ["0", "4", "100"])
def test_the_end_of_a_run_is_saved_also_where_no_save_is_due(folder, save_step):
    pretrain.main([*SHAPE, *SHORT, *SMALL, "--save_step", save_step])
    assert json.loads((folder / "results/pretrain.json").read_text("utf-8"))["step"] == 6
    assert training_state.find_newest(folder / "results/pretrain.state").name == "00000006"


AT = SHORT.index("--warmup_iters")
USUAL_WARM_UP = [*SHAPE, *SHORT[:AT], *SHORT[AT + 2 :], *SMALL, *"--max_seq_len 64 --log_step 1".split()]


def test_warm_up_is_a_tenth_of_a_short_run_and_the_plan_says_so(folder, capsys):
    pretrain.main([*USUAL_WARM_UP, "--max_steps", "20"])
    assert "2 steps of warm-up" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in rows(folder / "results/pretrain.metrics.jsonl") if "learning_rate" in row]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3]) and max(rates) == rates[2]


def test_a_run_with_the_usual_warm_up_is_made_longer_before_its_decay(folder):
    words = [*USUAL_WARM_UP, "--schedule", "wsd", "--save_step", "10"]
    pretrain.main([*words, "--max_steps", "20"])
    pretrain.main([*words, "--max_steps", "40", "--resume", "results/pretrain.state/00000010"])
    log = rows(folder / "results/pretrain.metrics.jsonl")
    rates = {row["step"]: row["learning_rate"] for row in log if "learning_rate" in row}
    assert rates[1] == pytest.approx(1e-3 / 3) and rates[30] == 1e-3 and max(rates) == 40


def test_torchrun_is_not_asked_to_start_again_what_max_minutes_stopped(folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="--max_minutes.*--max-restarts=0"):
        pretrain.main([*SHAPE, *SHORT, "--max_minutes", "5"])


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


def test_resuming_says_what_there_is(folder, capsys):
    pretrain.main([*ONE_STEP, "--resume"])
    assert "no state" in capsys.readouterr().out
    pretrain.main([*ONE_STEP, "--resume"])
    assert "nothing left to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is 0\.5"):
        pretrain.main([*ONE_STEP, "--resume", "--learning_rate", "0.5"])
    pretrain.main([*ONE_STEP, "--resume", "--log_step", "1"])  # harmless


def test_nothing_is_overwritten_unasked(folder):
    pretrain.main(ONE_STEP)
    with pytest.raises(ValueError, match="--resume.*--name.*--overwrite"):
        pretrain.main(ONE_STEP)
    pretrain.main([*ONE_STEP, "--overwrite"])


def test_a_shape_flag_that_contradicts_the_checkpoint_is_refused(folder):
    pretrain.main(ONE_STEP)
    with pytest.raises(ValueError, match="--n_heads 8.*says 4"):
        SFT.main([*SHORT, "--n_heads", "8"])


@pytest.mark.parametrize(
    "main, argv, command",
    [
        (SFT.main, SHORT, "python pretrain.py"),
        (SFT.main, ["--long", *SHORT], "python SFT.py"),
        (distill.main, SHORT, "python SFT.py"),
        (distill.main, ["--long", *SHORT], "python SFT.py --long"),
        (eval_model.main, ["--model_mode", "0"], "python pretrain.py"),
        (eval_model.main, ["--model_mode", "1"], "python SFT.py"),
        (eval_model.main, ["--model_mode", "2", "--long"], "python distill.py --long"),
    ],
)
def test_a_missing_checkpoint_says_which_command_makes_it(folder, main, argv, command):
    with pytest.raises(ValueError, match=rf"no such checkpoint. Make it with: {command} \("):
        main(argv)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--data_path", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--warmup_iters", "99", "--max_steps", "5"], "warmup_iters=99"),
        (["--dim", "30"], "dim=30"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(folder, argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: pretrain.main([*argv, "--num_workers", "1"]))
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and words in last


def test_without_data_the_bundled_sample_is_used_and_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = pretrain.parse_args(["--learning_rate", "0.5"])
    said = capsys.readouterr().out.splitlines()
    assert data.data.on_sample and data.data.paths == [options.SAMPLE / "pretrain.jsonl"]
    assert data.training.learning_rate == 0.5 and data.training.max_steps == 40  # what was typed stays
    assert pretrain.parse_args(["--data_path", str(options.SAMPLE / "pretrain.jsonl")]).data.on_sample  # named or not
    assert len(said) == 2 and "bundled sample" in said[0]
    assert "modelscope download --dataset Harris/pretrainSpongeBob pretrain.jsonl --local_dir . (or" in said[1]
