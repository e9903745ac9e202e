"""The commands of the original scripts' page work on the files that it leaves, and the output says so.

Each `modelscope download` of their page names a folder that is called like the file, so that the file is in it. The
weights are bare fp16 state dicts without a .json, and the long model is called SFT_1024.pth.
"""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from factories import SHAPE, SHORT, weights
from tiny_model import tiny

import distill
import eval_model
import pretrain
import SFT
import train_tokenizer
from engine.corpus import source

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
# The last of two equal flags counts.
FEW = [*SHORT, *"--max_steps 2 --warmup_iters 1 --eval_step 0 --val_fraction 0".split()]
TALK = ["--device", "cpu", "--weight_dtype", "float32", "--max_new_tokens", "8", "--prompt", "你好"]


@pytest.fixture
def downloaded(folder):
    """pretrain.jsonl/pretrain.jsonl and so on: `modelscope download --dataset ... X.jsonl --local_dir ./X.jsonl`."""
    for file in ("pretrain.jsonl", "sft_512.jsonl", "sft_1024.jsonl", "r1_1024.jsonl"):
        path = (folder / file).rename(folder / "one")
        (folder / file).mkdir()
        path.rename(folder / file / file)
    return folder


@pytest.fixture
def service(monkeypatch):
    """Replace wandb by one without a network; return the modes in which it was started."""
    modes = []

    def init(dir, mode="online", **more):
        modes.append(mode)
        if mode == "online":
            raise ConnectionError("no route to api.wandb.ai")
        return SimpleNamespace(
            dir=f"{dir}/wandb/offline-run/files", id="1", offline=True, log=lambda *_, **__: None, finish=lambda: None
        )

    known = SimpleNamespace(settings=SimpleNamespace(mode="online"))
    wandb = SimpleNamespace(
        init=init,
        Settings=lambda **_: None,
        setup=lambda settings: known,
        login=lambda **_: "WANDB_API_KEY" in os.environ,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return modes


def test_the_four_commands_run_on_folders_as_the_downloads_leave_them(downloaded, service, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a key, but no network")
    pretrain.main([*SHAPE, *FEW])
    SFT.main(FEW)
    distill.main(["--use_wandb", *FEW])
    output = capsys.readouterr().out
    for file in ("pretrain", "sft_512", "r1_1024"):
        assert f"{file}.jsonl is a folder: reading {file}.jsonl in it" in output
        assert f"file   {file}.jsonl: 200 rows" in output
    assert "bundled sample" not in output
    assert service == ["online", "offline"] and "upload it later with: wandb sync results/wandb/offline-run" in output
    eval_model.main(["--model_mode", "2", *TALK])
    assert capsys.readouterr().out.strip()


def test_wandb_without_an_account_is_offline_from_the_start(folder, service, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    monkeypatch.setenv("HOME", str(folder))
    pretrain.main([*SHAPE, *FEW, "--use_wandb"])
    assert service == ["offline"] and "wandb sync" in capsys.readouterr().out


def test_long_stage_tokenizer_and_download_take_the_file_in_the_folder(downloaded, monkeypatch, capsys):
    monkeypatch.setattr(source, "download", lambda name: pytest.fail(f"{name} is here already"))
    train_tokenizer.main(["--save_dir", "learned", "--vocab_size", "280"])
    assert "bundled sample" not in capsys.readouterr().out
    assert json.loads((downloaded / "learned/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    pretrain.main([*SHAPE, *FEW, "--download"])
    SFT.main([*FEW, "--long", "--init_from", "results/pretrain.pth"])
    assert "sft_1024.jsonl is a folder" in capsys.readouterr().out


@pytest.fixture(params=[True, False], ids=["with output.weight", "without it"])
def published(request, folder):
    """The four files that the original publishes, at a tiny shape: fp16, no .json, each another model."""
    (folder / "results").mkdir()
    models = {}
    for seed, name in enumerate(("pretrain", "SFT", "SFT_1024", "distill")):
        models[name] = tiny(seed, n_heads=8)
        half = {key: tensor.half() for key, tensor in models[name].state_dict().items()}
        if not request.param:
            del half["output.weight"]
        torch.save(half, folder / f"results/{name}.pth")
    return models


def test_published_weights_talk_under_the_originals_names(published, capsys):
    answers = []
    for mode in (["0"], ["1"], ["1", "--long"], ["2"]):
        eval_model.main(["--model_mode", *mode, *TALK, "--temperature", "0"])
        output, warned = capsys.readouterr()
        assert "no .json next to it" in warned and "does not say which tokenizer" in warned
        answers.append(output.splitlines()[-1])
    assert len(set(answers)) == 4  # SFT_1024.pth is the long model, and no other file was taken for one


def test_published_weights_are_distilled_from_and_not_overwritten(published, folder, request):
    with pytest.raises(ValueError, match="--name"):
        distill.main(FEW)  # the published distill.pth is there
    argv = ["--name", "mine"]
    if "without" in request.node.name:  # each half of the files, one of the roads
        argv = ["--long"]
    name, parent = ("distill_long", "SFT_1024") if "--long" in argv else ("mine", "SFT")
    distill.main([*argv, *FEW, "--learning_rate", "1e-9", "--weight_decay", "0"])
    assert json.loads((folder / f"results/{name}.json").read_text("utf-8"))["parent"].endswith(f"{parent}.pth")
    for key, tensor in weights(f"results/{name}.pth").items():
        assert torch.allclose(tensor, published[parent].state_dict()[key].half().float(), atol=1e-6), key


def test_notes_on_published_weights_are_no_lines_of_the_answers(tmp_path, capsys):
    model = tiny(n_heads=8, vocab_size=6500)
    weights = {"model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}}
    torch.save(weights, tmp_path / "SFT_1024.pth")
    (tmp_path / "questions.txt").write_text("你好\n再见", "utf-8")
    argv = [*TALK[:-2], "--long", "--save_dir", str(tmp_path), "--prompt_file", str(tmp_path / "questions.txt")]
    eval_model.main(argv)
    output, warned = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in output.splitlines()] == ["你好", "再见"]
    notes = ("taken out of", "removed from the names", "no .json next", "the original scripts' name", "never sampled")
    assert all(note in warned for note in notes)
