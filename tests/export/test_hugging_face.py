"""An exported folder gives the same ids, logits and answers in transformers."""

import json
import os
import stat

import pytest
import torch
from factories import CHAT, SCALING, TOKENIZER, TOKENIZER_DIR, greedy, save
from safetensors.torch import load_file
from tiny_model import tiny
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import export
from Config import LLMConfig
from dataset import SFTDataset
from engine.corpus import bpe
from engine.export.hugging_face import to_hf
from model import SpongeBob

pytestmark = pytest.mark.usefixtures("one_thread")


def test_exported_tokenizer_begins_text_and_chat_as_in_training(chats):
    _, _, theirs = chats
    assert theirs("你好 sea")["input_ids"] == [1, *TOKENIZER.encode("你好 sea", add_special_tokens=False).ids]
    assert theirs("x", add_special_tokens=False)["input_ids"] == TOKENIZER.encode("x", add_special_tokens=False).ids
    rendered = theirs.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert rendered == SFTDataset(TOKENIZER).prompt(CHAT[:3])
    assert theirs(["a", "b b b"], padding=True)["input_ids"][0][0] == theirs.pad_token_id  # on the left
    assert (theirs.model_max_length, theirs.padding_side) == (120, "left")


def test_a_pipeline_gives_our_own_greedy_answer(chats):
    folder, model, _ = chats
    talk = pipeline("text-generation", str(folder), device="cpu")
    told = talk(CHAT[:1], max_new_tokens=16, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert told == TOKENIZER.decode(greedy(model, SFTDataset(TOKENIZER).prompt(CHAT[:1]), 16)) and told


def test_the_template_masks_the_positions_trained_on(chats):
    _, _, theirs = chats
    found = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    document = SFTDataset(TOKENIZER).encode([CHAT])[0]
    assert found["input_ids"] == document.ids.tolist()
    assert found["assistant_masks"] == [int(kind > 0) for kind in document.classes]


def test_the_template_takes_lists_of_parts_and_null(chats):
    _, _, theirs = chats
    parts = [{"type": "text", "text": "天空"}, {"type": "image", "url": "x"}, {"type": "text", "text": "?"}]
    given = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}, {"role": "assistant"}]
    plain = [{"role": "user", "content": "天空?"}, *[{"role": "assistant", "content": ""}] * 2]
    texts = [theirs.apply_chat_template(messages, tokenize=False) for messages in (given, plain)]
    assert texts[0] == texts[1] and "None" not in texts[0]


def test_transformers_4_finds_its_fields_and_all_users_may_read(home):
    config = json.loads((home / "exported/config.json").read_text("utf-8"))
    assert (config["rope_theta"], config["torch_dtype"]) == (50000.0, "float32")
    assert config["rope_scaling"] == SCALING
    known = json.loads((home / "exported/tokenizer_config.json").read_text("utf-8"))
    assert known["tokenizer_class"] == "PreTrainedTokenizerFast" and known["add_bos_token"]
    assert known["model_input_names"] == ["input_ids", "attention_mask"]
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (home / "exported").iterdir()} == {0o644}


def test_the_model_card_lists_the_metrics_and_asks_for_a_license(home):
    card = (home / "exported/README.md").read_text("utf-8")
    for said in (
        "| held-out loss, nats per token | 1.2346 |",
        "| training tokens | 9000 |",
        "bundled sample only | yes",
        "LICENSE:",
        "license: unknown",
        "2 blocks of width 64",
    ):
        assert said in card, said
    assert "bits per byte" not in card  # the .json does not say


def test_half_precision_export_holds_the_rounded_weights(home):
    whole, half = (load_file(home / name / "model.safetensors") for name in ("exported", "half"))
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in whole.items())
    assert json.loads((home / "half/config.json").read_text("utf-8"))["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="--dtype q8_0 is only for --format gguf"):
        to_hf(tiny(), TOKENIZER_DIR, "x", "q8_0")


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
        to_hf(model, TOKENIZER_DIR, folder)


def test_an_export_reports_tokens_that_reach_across_line_breaks(tmp_path, capsys):
    tokenizer = bpe.train_bpe(["a\n\nb"] * 20, 270, tag_tokens=False)
    bpe.save_tokenizer(tokenizer, tmp_path / "own")
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["ĊĊ"] = size = len(content["model"]["vocab"])
    content["model"]["merges"].append(["Ċ", "Ċ"])
    other = Tokenizer.from_str(json.dumps(content))
    other.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    bpe.save_tokenizer(other, tmp_path / "other")
    model = SpongeBob(LLMConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=size + 1))
    for name, is_reported in (("own", False), ("other", True)):
        to_hf(model, tmp_path / name, tmp_path / f"{name}-hf")
        assert ("1 tokens of" in capsys.readouterr().err) == is_reported
