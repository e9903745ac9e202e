"""pretrain.py --init_from: a trained model learns new texts and reads old ones again (--data_epochs)."""

import json
import shlex

import pytest
from factories import rows, same, save, weights, write_rows
from tiny_model import tiny

import eval_model
import pretrain
import SFT
from engine.checkpoint import trained_rows

pytestmark = pytest.mark.usefixtures("quick", "one_thread")
FLAGS = (
    "--device cpu --dtype float32 --num_workers 1 --batch_size 8 --max_seq_len 64 --log_step 1 "
    "--eval_step 0 --save_step 0 --val_fraction 0"
).split()
MIXED = "--data_path notes.jsonl pretrain.jsonl --data_epochs 2.5 0.3".split()
NOTES = ["--init_from", "parent.pth", "--name", "notes", *MIXED, *FLAGS, "--accumulation_steps", "2"]


@pytest.fixture
def notes(folder):
    """A folder with a model, old texts and new ones."""
    write_rows(folder / "notes.jsonl", [{"text": f"第{number}封信说，猫睡在船上。" * 3} for number in range(20)])
    save(tiny(n_layers=1), folder / "parent.pth", stage="pretrain")
    return folder


def test_resumed_run_on_new_and_old_texts_ends_with_the_same_bits(notes, capsys):
    argv = [*NOTES, "--epochs", "2"]
    pretrain.main(argv)
    output = capsys.readouterr().out
    assert "epoch  notes.jsonl: " in output and "epoch  pretrain.jsonl: " in output and "2.00 epochs" in output
    cut = [*argv, "--name", "cut"]
    assert pretrain.main([*cut, "--max_minutes", "1e-9"]) == 75
    assert pretrain.main([*cut, "--resume"]) == 0
    whole, again = (notes / f"results/{name}" for name in ("notes", "cut"))
    assert same(weights(whole.with_suffix(".pth")), weights(again.with_suffix(".pth")))
    assert rows(whole.with_suffix(".metrics.jsonl")) == rows(again.with_suffix(".metrics.jsonl"))


def test_run_on_new_texts_is_bound_to_its_parent_and_its_files(notes):
    argv = [*NOTES, "--epochs", "2"]
    assert pretrain.main([*argv, "--max_minutes", "1e-9"]) == 75
    meta = json.loads((notes / "results/notes.json").read_text())
    assert meta["parent"] == "parent.pth" and meta["stage"] == "pretrain"
    assert meta["ancestors"] == [json.loads((notes / "parent.json").read_text())["weights"]]
    trained = trained_rows.read(notes / "results/notes.pth", meta["weights"])
    assert len(trained.hashes) == 20 + 200 and not trained.is_complete  # the parent's are not known
    save(tiny(seed=1), notes / "other.pth", stage="pretrain")
    for more, message in (
        (["--init_from", "other.pth"], "belongs to another run: parent was"),
        (["--data_epochs", "2.5", "0.4"], r"data_epochs was \[2.5, 0.3\], is \[2.5, 0.4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain.main([*argv, *more, "--resume"])


def test_next_commands_are_printed_and_work(notes, capsys):
    """After held-out losses of each file, which validation computes apart."""
    assert pretrain.main([*NOTES, "--max_steps", "4", "--val_fraction", "0.1"]) == 0
    *lines, train, chat = capsys.readouterr().out.splitlines()
    before, after = rows(notes / "results/notes.metrics.jsonl")[0::4]
    assert any(line.endswith(", 1 steps of warm-up") for line in lines)  # a quarter, and not a tenth
    new, old = (f"val_bits_per_byte/{name}.jsonl" for name in ("notes", "pretrain"))
    low, high = sorted([after[new], after[old]])
    assert low < after["val_bits_per_byte"] < high and before.keys() >= {new, old}
    assert any(line.startswith(f"  {new} {before[new]:.4f} -> {after[new]:.4f}") for line in lines)
    assert train == "next   python SFT.py --init_from results/notes.pth --name notes_SFT"
    assert chat == "       python eval_model.py --ckpt results/notes_SFT.pth"
    assert SFT.main([*shlex.split(train)[3:], *FLAGS, "--max_steps", "2", "--data_epochs", "0.5"]) == 0
    eval_model.main([*shlex.split(chat)[2:], "--device", "cpu", "--prompt", "猫在哪里？", "--max_new_tokens", "2"])
    assert len(json.loads((notes / "results/notes_SFT.json").read_text())["ancestors"]) == 2


REFUSED = {
    "--init_from: the model that it makes needs a --name": ["--init_from", "parent.pth"],
    "--dim would change nothing: the checkpoint of --init_from has its shape": [*NOTES, "--dim", "64"],
    "--preset would change nothing": [*NOTES, "--preset", "1B"],
    "parent.pth is what --name parent would replace": [*NOTES, "--name", "parent", "--save_dir", ".", "--overwrite"],
    "--data_epochs \\[1.0, 2.0\\] for 1 files": ["--data_epochs", "1", "2", "--data_path", "notes.jsonl"],
    "--data_epochs 0.0 must be more than 0": [*NOTES, "--data_epochs", "1", "0"],
    "--data_epochs -1.0 must be more than 0": [*NOTES, "--data_epochs", "-1"],
    "--data_epochs nan must be a finite number": [*NOTES, "--data_epochs", "nan"],
    "--data_epochs: notes.jsonl is given 2 times": [*NOTES, "--data_path", "notes.jsonl", "./notes.jsonl"],
    "--data_epochs: an epoch has no packed row of notes.jsonl;": [*NOTES, "--data_epochs", "0.01", "1"],
    "--data_epochs: cached is a finished cache": [*NOTES, "--data_path", "cached", "--data_epochs", "2"],
    "trained with tokenizer": [*NOTES, "--init_from", "foreign.pth"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_new_texts_are_refused_where(message, notes):
    (notes / "cached").mkdir()
    (notes / "cached/meta.json").touch()
    save(tiny(n_layers=1), notes / "foreign.pth", tokenizer="another")
    with pytest.raises(ValueError, match=message):
        pretrain.main(REFUSED[message])


def test_chat_model_that_reads_texts_alone_is_said_to_forget(notes, capsys):
    save(tiny(n_layers=1), notes / "parent.pth", stage="SFT")
    assert pretrain.main([*NOTES, "--max_steps", "2"]) == 0
    assert "note: parent.pth is of stage SFT; with texts alone it forgets to answer" in capsys.readouterr().out
