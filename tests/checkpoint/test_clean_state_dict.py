"""Checkpoints in the forms that people share: loaded as the same weights, or refused with the reason."""

import json
from collections import OrderedDict

import pytest
import torch
from tiny_model import tiny

from Config import LLMConfig
from engine.checkpoint.weights import config_dict, load_model, open_checkpoint
from model import SpongeBob, rope_frequencies

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64}


@pytest.fixture(scope="module")
def weights():
    return {name: tensor.clone() for name, tensor in tiny(**SHAPE).state_dict().items()}


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def freqs(theta=1e6, heads=4):
    return rope_frequencies(
        LLMConfig(**SHAPE | {"n_heads": heads, "n_kv_heads": heads, "rope_theta": theta}), torch.device("cpu")
    )


def turning(theta=1e6):
    """freqs_cis as Meta's program computes it."""
    angles = torch.outer(torch.arange(10.0), freqs(theta))
    return torch.polar(torch.ones_like(angles), angles)


FORMS = {
    "plain": lambda w: w,
    "OrderedDict of parameters": lambda w: OrderedDict(
        (name, torch.nn.Parameter(tensor)) for name, tensor in w.items()
    ),
    "without the tied output": lambda w: {name: tensor for name, tensor in w.items() if name != "output.weight"},
    "compiled": lambda w: prefixed(w, "_orig_mod."),
    "blocks compiled": lambda w: {
        name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in w.items()
    },
    "DDP": lambda w: prefixed(w, "module."),
    "DDP of compiled": lambda w: prefixed(w, "module._orig_mod."),
    "in a member called model": lambda w: prefixed(w, "model."),
    "wrapped": lambda w: {"model": w, "optimizer": {"state": {}, "lr": 0.1}, "step": 7},
    "Lightning": lambda w: {"state_dict": prefixed(w, "model."), "epoch": 3, "hyper_parameters": {"dim": 32}},
    "wrapped DDP": lambda w: {"model_state_dict": prefixed(w, "module."), "loss": 1.5},
    "with rope.freqs": lambda w: w | {"rope.freqs": freqs().bfloat16()},
    "with freqs_cis": lambda w: w | {"freqs_cis": turning()},
    "with buffers of each layer": lambda w: (
        w | {"layers.0.attention.rotary_emb.inv_freq": freqs(), "pos_cis": turning()}
    ),
    "float64": lambda w: {name: tensor.double() for name, tensor in w.items()},
}


def saved(content, path, config=True, **options):
    torch.save(content, path, **options)
    if config:
        path.with_suffix(".json").write_text(json.dumps({"config": SHAPE}), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("config", [True, False], ids=["with .json", "shape off the tensors"])
def test_every_form_gives_the_same_weights_and_says_what_is_removed(form, config, weights, tmp_path, capsys):
    path = saved(FORMS[form](weights), tmp_path / "w.pth", config)
    model, _ = load_model(path, n_heads=None if config else 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    said = capsys.readouterr().err
    wrapped, named = "taken out of" in said, "removed from the names" in said
    assert wrapped == (form in ("wrapped", "Lightning", "wrapped DDP"))
    assert named == any(word in form for word in ("compiled", "DDP", "Lightning", "called model"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_the_old_container_are_read(dtype, weights, tmp_path):
    half = {name: tensor.to(dtype) for name, tensor in weights.items()}
    model, _ = load_model(saved(half, tmp_path / "w.pth", _use_new_zipfile_serialization=False))
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda w: {name: tensor.mul(9).to(torch.int8) for name, tensor in w.items()}, "is int8"),
        (lambda w: w | {"norm.weight": torch.full((32,), float("nan"))}, "norm.weight holds NaN or infinity"),
        (lambda w: w | {"norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}, "norm.weight holds NaN"),
        (lambda w: w | prefixed(w, "_orig_mod."), "holds weights twice"),
        (lambda w: w | {"rope.freqs": freqs(1e4)}, r"not of rope_theta 1e\+06, but of about 1e\+04: see --rope_theta"),
        (lambda w: w | {"freqs_cis": turning(5e5)}, r"but of about 5e\+05"),
        (lambda w: w | {"rope.freqs": freqs(heads=2)}, "heads of 16 numbers: give --n_heads 2"),
        (lambda w: w | {"steps": 7}, "steps is int, expected a named tensor"),
        (lambda w: {"model": {"model": w}}, "model is dict, expected a named tensor"),
        (lambda w: {f"model.layers.0.self_attn.{n}_proj.weight": w["norm.weight"] for n in "qk"}, "Hugging Face's"),
        (lambda w: w | {"output.weight": w["output.weight"] + 1}, "output.weight differs from tok_embeddings.weight"),
        (lambda w: {"conv.weight": w["norm.weight"]}, "Meta's names in it .*its names: conv.weight"),
        (lambda w: [w], "holds list, expected a dict"),
    ],
)
def test_silently_wrong_weights_are_refused_by_name(change, reason, weights, tmp_path):
    with pytest.raises(ValueError, match=f"w.pth: .*{reason}") as told:
        load_model(saved(change(weights), tmp_path / "w.pth", config=False), n_heads=4)
    assert "\n" not in str(told.value) and "\x1b" not in str(told.value)


class Trainer:
    """Something that a pickle names."""


@pytest.mark.parametrize(
    "write, reason",
    [
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"), "a pointer of git LFS"),
        (lambda path: path.write_text("<!DOCTYPE html>\n<html>"), "a web page"),
        (lambda path: path.write_bytes(b"\x40" + bytes(7) + b'{"norm.weight":{}}' + bytes(99)), "safetensors"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)), "not a readable checkpoint of plain tensors"),
        (lambda path: torch.save({"trainer": Trainer()}, path), "more than plain tensors: .*Trainer"),
        (lambda path: torch.save(tiny(**SHAPE), path), "more than plain tensors"),
    ],
)
def test_a_file_of_another_type_is_named_in_one_line(write, reason, tmp_path):
    write(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth: .*{reason}") as told:
        load_model(tmp_path / "w.pth")
    words = str(told.value)
    assert "\n" not in words and "\x1b" not in words and "weights_only" not in words and len(words) < 400


def test_a_folder_and_a_missing_file_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="a folder; name the .pth file"):
        open_checkpoint(tmp_path, tokenizer, "t")
    with pytest.raises(ValueError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "w.pth", tokenizer, "t")


@pytest.mark.parametrize(
    "meta",
    [
        [],
        5,
        "x",
        {"config": 5},
        {"config": {"rope_theta": "x"}},
        {"config": {"rope_parameters": 3}},
        {"config": {"dim": []}},
        {"config": {"dims": 32}},
        {"tokenizer": 5},
        {"config": {"n_layers": "2"}},
        {"config": {"norm_eps": None}},
    ],
)
def test_an_invalid_json_is_refused_in_one_line(meta, weights, tmp_path):
    path = saved(weights, tmp_path / "w.pth")
    path.with_suffix(".json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(ValueError, match=r"w\.json: ") as told:
        load_model(path)
    assert "\n" not in str(told.value)


# ------------------------------------------------------------------------------------------------------- the shape

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_rope_scaling_accepts_the_old_key_of_its_type():
    wanted = rope_frequencies(LLMConfig(rope_scaling={"rope_type": "llama3", **LLAMA3}), torch.device("cpu"))
    found = rope_frequencies(LLMConfig(rope_scaling={"type": "llama3", **LLAMA3}), torch.device("cpu"))
    assert torch.equal(found, wanted) and not torch.equal(found, rope_frequencies(LLMConfig(), torch.device("cpu")))


def test_rope_theta_is_read_from_rope_parameters():
    assert LLMConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope_theta == 5e5
    assert LLMConfig(rope_theta=1e4).rope_parameters["rope_theta"] == 1e4 and LLMConfig().rope_theta == 1e6
    again = LLMConfig(**json.loads(json.dumps(config_dict(LLMConfig(rope_theta=1e4)))))
    assert again.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    "given, reason",
    [
        ({"rope_scaling": LLAMA3}, "rope_scaling: no rope_type next to"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear' is not known"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "missing high_freq_factor, low_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor means nothing to rope_type 'default'"),
        ({"rope_scaling": {"type": "llama3", "rope_type": "default"}}, "type is 'llama3', rope_type 'default'"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "also given as 10000.0"),
        ({"rope_scaling": 3}, "must be a dict"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ],
)
def test_contradicting_config_values_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        LLMConfig(**given)
    assert isinstance(SpongeBob(LLMConfig(**SHAPE)), SpongeBob)
