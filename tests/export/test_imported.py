"""Folders of Hugging Face and Meta become our checkpoints bitwise; other models are refused in one line."""

import importlib.util
import json
import shutil

import pytest
import torch
from factories import CHAT, TOKENIZER, same, weights
from safetensors.torch import load_file, save_file
from tiny_model import tiny
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import export
from dataset import SFTDataset
from engine.checkpoint.weights import full_state_dict, load_model
from engine.export.hugging_face import permute_for_hf, unpermute_from_hf
from engine.tokenizer import fingerprint
from model import rope_frequencies

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(folder, **changes):
    """config.json, changed where `changes` says so; None takes a field out."""
    path = folder / "config.json"
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}), "utf-8")
    return content


# ------------------------------------------------------------------------------------------------- Hugging Face


def imported(folder, target, *words):
    export.main(["--import_hf", str(folder), str(target), *map(str, words)])
    return target


def test_export_and_import_are_bitwise_inverse(home, tmp_path):
    target = imported(home / "exported", tmp_path / "back.pth")
    assert same(weights(target), weights(home / "SFT.pth"))
    meta, before = (json.loads(path.with_suffix(".json").read_text("utf-8")) for path in (target, home / "SFT.pth"))
    assert (meta["config"], meta["tokenizer"]) == (before["config"], before["tokenizer"])
    rows = torch.arange(32.0).view(16, 2)
    assert torch.equal(unpermute_from_hf(permute_for_hf(rows, 2), 2), rows) and not torch.equal(
        permute_for_hf(rows, 2), rows
    )


def test_shards_saved_by_transformers_are_imported_into_save_dir(home, tmp_path):
    llama = LlamaForCausalLM.from_pretrained(home / "half", dtype=torch.bfloat16)
    llama.save_pretrained(tmp_path / "again", max_shard_size="60KB")
    assert (tmp_path / "again/model.safetensors.index.json").is_file()
    export.main(["--import_hf", str(tmp_path / "again"), "--save_dir", str(tmp_path), "--max_seq_len", "64"])
    model, meta = load_model(tmp_path / "again.pth")
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights(home / "SFT.pth").items()}
    assert same(full_state_dict(model), rounded)
    assert model.config.max_seq_len == 64 and "tokenizer" not in meta


def test_a_config_of_transformers_4_keeps_its_meaning(home, tmp_path):
    shutil.copytree(home / "exported", tmp_path / "old")
    config_of(
        tmp_path / "old",
        rope_parameters=None,
        rope_theta=None,
        rope_scaling=None,
        head_dim=None,
        rms_norm_eps=None,
        num_key_value_heads=2,
    )
    model, _ = load_model(imported(tmp_path / "old", tmp_path / "old.pth"))
    assert (
        model.config.norm_eps == 1e-6
        and model.config.rope_theta == 1e4
        and model.config.rope_parameters["rope_type"] == "default"
    )
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "old"), torch.arange(37)[None]
    assert (theirs(ids).logits - model(ids).logits).abs().max() < 1e-4


def untied(folder):
    config_of(folder, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, folder / "model.safetensors")


def cut_a_row(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name][1:].contiguous()}, folder / "model.safetensors")


def index_of(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


REFUSED = {
    "q_proj.weight has the shape \\(63, 64\\); by its config.json it is \\(64, 64\\)": cut_a_row,
    "weight_map names no files": lambda folder: index_of(folder, {"weight_map": {"a": 1}}),
    "says no weight_map": lambda folder: index_of(folder, {"weight_map": None}),
    "n_kv_heads=True must be a whole number": lambda folder: config_of(folder, num_key_value_heads=True),
    "says no num_attention_heads": lambda folder: config_of(folder, num_attention_heads=0),
    "config.json: not JSON .maximum recursion": lambda folder: (folder / "config.json").write_text("[" * 100000),
    "output.weight differs from tok_embeddings.weight, but this model ties them": untied,
    "tie_word_embeddings is false and lm_head.weight is missing": lambda folder: config_of(
        folder, tie_word_embeddings=False
    ),
    "model_type 'qwen3'": lambda folder: config_of(folder, model_type="qwen3"),
    "attention_bias is True": lambda folder: config_of(folder, attention_bias=True),
    "hidden_act is gelu": lambda folder: config_of(folder, hidden_act="gelu"),
    "quantization_config is": lambda folder: config_of(folder, quantization_config={"bits": 4}),
    "heads of 32 numbers; here they are 64 / 4 wide": lambda folder: config_of(folder, head_dim=32),
    "'yarn' is not known": lambda folder: config_of(
        folder, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e4}, rope_scaling=None
    ),
    "says no hidden_size": lambda folder: config_of(folder, hidden_size=None),
    "missing layers.2": lambda folder: config_of(folder, num_hidden_layers=3),
    "model.safetensors: not there": lambda folder: (folder / "model.safetensors").unlink(),
    "not a readable safetensors file": lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
    "a LoRA adapter, no model": lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
    "neither config.json": lambda folder: (folder / "config.json").unlink(),
    "config.json: not JSON": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_model_that_is_not_computed_here_is_refused_in_one_line(reason, home, tmp_path):
    shutil.copytree(home / "exported", tmp_path / "theirs")
    REFUSED[reason](tmp_path / "theirs")
    with pytest.raises(ValueError, match=reason) as told:
        imported(tmp_path / "theirs", tmp_path / "w.pth")
    assert "\n" not in str(told.value) and not list(tmp_path.glob("w.*"))


def test_import_overwrites_nothing_and_needs_its_flags(home, tmp_path):
    (tmp_path / "w.json").write_text("mine")
    for target, reason in (("w.pth", "w.json already exists"), ("w.bin", "ends in .pth")):
        with pytest.raises(ValueError, match=reason):
            imported(home / "exported", tmp_path / target)
    for words in ("--format hf --import_hf x y", "x", "--format hf"):
        with pytest.raises(ValueError, match="--format"):
            export.main(words.split())


# ------------------------------------------------------------------------------------------------------ Meta's


def leave_meta(folder, model, wrap=lambda tensors: tensors, **changes):
    folder.mkdir()
    config = model.config
    params = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": -1,
        "multiple_of": 64,
        "norm_eps": 1e-5,
        "rope_theta": 50000.0,
    }
    (folder / "params.json").write_text(json.dumps(params | changes))
    tensors = full_state_dict(model) | {"rope.freqs": rope_frequencies(config, torch.device("cpu"))}
    torch.save(wrap(tensors), folder / "consolidated.00.pth")
    return folder


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, "step": 3},
    ],
    ids=["plain", "wrapped"],
)
def test_a_folder_of_meta_is_imported_as_the_same_model(wrap, tmp_path):
    model = tiny(vocab_size=300, rope_theta=50000.0)
    folder = leave_meta(tmp_path / "meta", model, wrap)
    found, _ = load_model(imported(folder, tmp_path / "w.pth", "--max_seq_len", 256))
    assert same(full_state_dict(found), full_state_dict(model))
    assert (found.config.rope_theta, found.config.max_seq_len, found.config.n_heads) == (50000.0, 256, 4)


@pytest.mark.parametrize(
    "changes, words, reason",
    [
        ({}, (), "give --max_seq_len"),
        ({"use_scaled_rope": True}, ("--max_seq_len", 64), "use_scaled_rope, without its factor"),
        ({"rope_theta": 1e4}, ("--max_seq_len", 64), "rope.freqs is not of rope_theta 10000, but of about 5e"),
        ({"n_layers": 3}, ("--max_seq_len", 64), "missing layers.2"),
    ],
)
def test_a_folder_of_meta_with_other_settings_is_refused(changes, words, reason, tmp_path):
    folder = leave_meta(tmp_path / "meta", tiny(vocab_size=300, rope_theta=50000.0), **changes)
    with pytest.raises(ValueError, match=reason):
        imported(folder, tmp_path / "w.pth", *words)


# -------------------------------------------------------------------------------------------------------- trl's


@pytest.mark.runtimes
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="no trl here: pip install trl")
@pytest.mark.filterwarnings("default")
def test_trl_trains_on_assistant_tokens_and_its_model_is_imported(chats, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder, model, _ = chats
    settings = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        assistant_only_loss=True,
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        max_length=120,
        logging_steps=1,
    )
    trainer = SFTTrainer(model=str(folder), args=settings, train_dataset=Dataset.from_list([{"messages": CHAT}] * 8))
    batch = next(iter(trainer.get_train_dataloader()))
    document = SFTDataset(TOKENIZER).encode([CHAT])[0]
    labels = torch.from_numpy(document.ids.astype("int64")).masked_fill(torch.from_numpy(document.classes == 0), -100)
    assert batch["labels"][0].tolist() == labels.tolist()
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    found, meta = load_model(imported(tmp_path / "trained", tmp_path / "trained.pth"))
    assert meta["tokenizer"] == fingerprint(TOKENIZER) and not same(full_state_dict(found), full_state_dict(model))
    theirs, ids = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32),
        torch.arange(37)[None],
    )
    assert (theirs(ids).logits - found(ids).logits).abs().max() < 1e-4
