"""Published weights load without flags; those of another tokenizer are refused."""

import pytest
import torch
from factories import TOKENIZER, greedy, save
from tiny_model import tiny

import eval_model
from dataset import SFTDataset
from engine.checkpoint.weights import full_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("tied", [True, False], ids=["with_output", "without_output"])
def test_published_weights_with_8_key_value_heads_load_without_flags(ask, tmp_path, tied):
    model = tiny(n_heads=8, n_kv_heads=8, max_seq_len=512)
    weights = full_state_dict(model)
    if not tied:
        del weights["output.weight"]
    torch.save(weights, tmp_path / "SFT.pth")
    out = ask("--save_dir", tmp_path, "--temperature", 0, "--prompt", "你好")
    assert "8 heads are assumed (--n_heads) and RoPE theta 1e+06 is assumed" in out
    assert "does not say which tokenizer" in ask.warned
    ids = SFTDataset(TOKENIZER).prompt([{"role": "user", "content": "你好"}])
    assert out.endswith(TOKENIZER.decode(greedy(model, ids), skip_special_tokens=False) + "\n")


def test_weights_of_another_tokenizer_are_refused(model, tmp_path):
    save(model, tmp_path / "SFT.pth", tokenizer="0123456789ab")
    with pytest.raises(ValueError, match="--tokenizer_dir"):
        eval_model.main(["--save_dir", str(tmp_path), "--prompt", "x"])
