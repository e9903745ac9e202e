"""The exported folder is an ordinary Llama that says the same."""

import json

import pytest
import torch
from making import SCALING, TOKENIZER_DIR, greedy, save_checkpoint, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
from dataset import SFTDataset
from engine.checkpoint import hugging_face

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
def test_the_exported_folder_loads_in_transformers_and_says_the_same(tmp_path, capsys, tokenizer, scaling):
    model, folder = tiny(rope_scaling=scaling, rope_theta=50000.0), tmp_path / "hf"
    save_checkpoint(model, tmp_path / "SFT.pth")
    export.main(["--save_dir", str(tmp_path), "--format", "hf", str(folder)])
    assert f"wrote {folder}" in capsys.readouterr().out

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert config["tie_word_embeddings"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config.get("rope_scaling", {}).get("factor") == (scaling or {}).get("factor")
    theirs, reader = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(6400, (2, 37), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids).logits).abs().max() < 1e-4

    messages = [{"role": "user", "content": "天空为什么是蓝色的？"}]
    prompt = reader.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert prompt[0].tolist() == SFTDataset(tokenizer).prompt(messages)
    answer = theirs.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert reader.decode(answer, skip_special_tokens=True) == tokenizer.decode(greedy(model, prompt[0].tolist()))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        hugging_face.to_hf(model, TOKENIZER_DIR, folder)
