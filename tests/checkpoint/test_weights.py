"""Weights load from wherever they come, or are refused in one line."""

import pytest
import torch
from making import greedy, save_checkpoint, tiny

import eval_model
from dataset import SFTDataset
from engine.checkpoint import weights as weights_module
from engine.checkpoint.weights import cpu_weights


@pytest.mark.parametrize("tied", [True, False], ids=["with_output", "without_output"])
def test_published_weights_with_8_key_value_heads_load_without_flags(ask, tmp_path, tied, tokenizer, monkeypatch):
    model = tiny(n_heads=8, n_kv_heads=8, max_seq_len=512)
    weights = cpu_weights(model)
    if not tied:
        del weights["output.weight"]
    torch.save(weights, tmp_path / "SFT.pth")
    warned = []
    monkeypatch.setattr(weights_module, "warn", warned.append)
    out = ask("--save_dir", tmp_path, "--temperature", 0, "--prompt", "你好")
    assert "8 heads and RoPE theta 1e+06 are assumed" in out
    assert "does not say which tokenizer" in "".join(warned)
    ids = SFTDataset(tokenizer).prompt([{"role": "user", "content": "你好"}])
    assert out.endswith(tokenizer.decode(greedy(model, ids), skip_special_tokens=False) + "\n")


def test_another_tokenizers_weights_are_refused(model, tmp_path):
    save_checkpoint(model, tmp_path / "SFT.pth", tokenizer="0123456789ab")
    with pytest.raises(ValueError, match="--tokenizer_dir"):
        eval_model.main(["--save_dir", str(tmp_path), "--prompt", "x"])
