"""Weights for other programs: a Hugging Face folder that holds an ordinary Llama."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from Config import LLMConfig
from dataset import BOS, EOS, UNK, load_tokenizer
from engine.checkpoint.weights import cpu_weights
from engine.console import say
from engine.files import write_json
from model import SpongeBob

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def hf_name(name: str) -> str:
    """Hugging Face's name of one of Meta's: layers.0.attention.wq.weight -> model.layers.0.self_attn.q_proj.weight."""
    if name == "output.weight":
        return "lm_head.weight"
    if not name.startswith("layers."):
        return "model." + name.replace("tok_embeddings", "embed_tokens")
    _, layer, inner = name.split(".", 2)
    return f"model.layers.{layer}.{NAMES[inner.removesuffix('.weight')]}.weight"


def half_rotated(weight: Tensor, heads: int) -> Tensor:
    """wq or wk (heads * D, C) for Hugging Face's RoPE, which pairs row i of a head with row i + D/2, not with i + 1."""
    out, width = weight.shape
    return weight.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def hf_weights(weights: dict[str, Tensor], config: LLMConfig) -> dict[str, Tensor]:
    """The state dict of the LlamaForCausalLM that computes the same."""
    heads = {"attention.wq.weight": config.n_heads, "attention.wk.weight": config.n_kv_heads}
    converted = {}
    for name, weight in weights.items():
        inner = name.split(".", 2)[-1]
        converted[hf_name(name)] = half_rotated(weight, heads[inner]) if inner in heads else weight
    return converted


def hf_config(config: LLMConfig, **token_ids: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim, max_position_embeddings=config.max_seq_len, rms_norm_eps=config.norm_eps,
        rope_parameters=dict(config.rope_parameters), tie_word_embeddings=True, **token_ids,
    )  # fmt: skip


def to_hf(model: SpongeBob, tokenizer_dir: str | Path, folder: str | Path) -> None:
    """Write config, fp32 safetensors, tokenizer and generation settings. ValueError: `folder` is not empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: there already and not an empty folder; name another, nothing is overwritten")
    tokenizer = load_tokenizer(tokenizer_dir)
    names = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNK}
    if across := sum("Ċ" in token[:-1] for token in tokenizer.get_vocab()):  # as byte-level BPE spells a line break
        say(f"note: {across} tokens of {tokenizer_dir} reach across a line break. A message that begins with one is "
            "encoded otherwise by other programs: they encode the role's line together with it")  # fmt: skip
    token_ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    llama = LlamaForCausalLM(hf_config(model.config, **token_ids))
    llama.load_state_dict(hf_weights(cpu_weights(model), model.config), strict=True)
    llama.generation_config = GenerationConfig(**token_ids)
    llama.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (Path(tokenizer_dir) / name).is_file():
            shutil.copyfile(Path(tokenizer_dir) / name, folder / name)
    _for_older_readers(folder / "config.json")


def _for_older_readers(path: Path) -> None:
    """transformers 5 writes only rope_parameters. Who does not know that field silently takes theta 10000."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    config["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    write_json(path, config)
