"""Weights of others: published ones load, pickled code and other tokenizers' are refused, exports say the same."""

import json

import pytest
import torch
from factories import SCALING, TOKENIZER, TOKENIZER_DIR, greedy, save
from tiny_model import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval_model
import export
from dataset import SFTDataset
from engine.checkpoint.weights import full_state_dict
from engine.export import hugging_face

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


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
def test_exported_folder_gives_the_same_logits_and_answer_in_transformers(ask, tmp_path, scaling):
    model, folder = tiny(rope_scaling=scaling, rope_theta=50000.0), tmp_path / "hf"
    save(model, tmp_path / "SFT.pth")
    export.main(["--format", "hf", str(folder), "--save_dir", str(tmp_path)])

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert config["tie_word_embeddings"] and (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config.get("rope_scaling", {}).get("factor") == (scaling or {}).get("factor")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(6400, (2, 37), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids).logits).abs().max() < 1e-4

    messages = [{"role": "user", "content": "天空为什么是蓝色的？"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert prompt[0].tolist() == SFTDataset(TOKENIZER).prompt(messages)
    answer = theirs.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == TOKENIZER.decode(greedy(model, prompt[0].tolist()))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        hugging_face.to_hf(model, TOKENIZER_DIR, folder)
