"""Published weights load without flags; those of another tokenizer are refused; figures are of the weights."""

import sys

import pytest
import torch
from factories import TOKENIZER, greedy, save
from tiny_model import tiny

import eval_model
from dataset import SFTDataset
from engine.checkpoint import weights
from engine.checkpoint.weights import full_state_dict, load_model, weights_hash

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("tied", [True, False], ids=["with_output", "without_output"])
def test_published_weights_with_8_key_value_heads_load_without_flags(ask, tmp_path, tied):
    model = tiny(n_heads=8, n_kv_heads=8, max_seq_len=512)
    tensors = full_state_dict(model)
    if not tied:
        del tensors["output.weight"]
    torch.save(tensors, tmp_path / "SFT.pth")
    out = ask("--save_dir", tmp_path, "--temperature", 0, "--prompt", "你好")
    assert "8 heads are assumed (--n_heads) and RoPE theta 1e+06 is assumed" in ask.warned
    assert "does not say which tokenizer" in ask.warned
    ids = SFTDataset(TOKENIZER).prompt([{"role": "user", "content": "你好"}])
    assert out.endswith(TOKENIZER.decode(greedy(model, ids), skip_special_tokens=False) + "\n")


def test_weights_of_another_tokenizer_are_refused(model, tmp_path):
    save(model, tmp_path / "SFT.pth", tokenizer="0123456789ab")
    with pytest.raises(ValueError, match="--tokenizer_dir"):
        eval_model.main(["--save_dir", str(tmp_path), "--prompt", "x"])


def test_kill_between_weights_and_json_is_told_and_no_old_figure_used(tmp_path, capsys, monkeypatch):
    path, new = tmp_path / "SFT.pth", tiny(seed=1)
    save(tiny(), path, step=5, val_loss=1.25)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_json", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            save(new, path, step=6, val_loss=1.0)
    _, meta = load_model(path)
    assert not meta.keys() & {"step", "val_loss"}
    assert meta.keys() == {"config", "tokenizer", "stage", "weights"}  # enough to chat, and the digest
    assert f"{tmp_path / 'SFT.json'} describes other weights than {path} has" in capsys.readouterr().err
    save(new, path, step=6, val_loss=1.0)
    _, meta = load_model(path)
    assert (meta["step"], meta["weights"]) == (6, weights_hash(new.state_dict())) and not capsys.readouterr().err
