"""Export to transformers: a folder that holds an ordinary LlamaForCausalLM. The inverse is in imported.py."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from Config import LLMConfig
from engine.checkpoint.weights import full_state_dict
from engine.console import warn
from engine.corpus.bpe import tokenizer_config
from engine.export.names import FROM_HF, NAMES, TO_HF, translate
from engine.files import all_or_none, write_error, write_json
from engine.tokenizer import BOS, EOS, UNK, load_tokenizer
from model import SpongeBob, check_parameters_known


def permute_for_hf(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder wq or wk, (n_heads * D, C): in a head Hugging Face's RoPE pairs row i with i + D/2, not with i + 1."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def unpermute_from_hf(weight: Tensor, n_heads: int) -> Tensor:
    """Undo permute_for_hf; (n_heads * D, C)."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def num_rotated_heads(name: str, config: LLMConfig) -> int | None:
    """Return the number of heads in a matrix whose rows RoPE pairs, None for all others."""
    heads = {"attention.wq.weight": config.n_heads, "attention.wk.weight": config.n_kv_heads}
    return heads.get(name.split(".", 2)[-1])


def to_hf_state_dict(weights: dict[str, Tensor], config: LLMConfig) -> dict[str, Tensor]:
    """Return the state dict of the LlamaForCausalLM that computes the same."""
    check_parameters_known(weights, NAMES, "--format hf")
    converted = {}
    for name, weight in weights.items():
        n_heads = num_rotated_heads(name, config)
        converted[translate(name, TO_HF)] = permute_for_hf(weight, n_heads) if n_heads else weight
    return converted


def from_hf_state_dict(weights: dict[str, Tensor], config: LLMConfig) -> dict[str, Tensor]:
    """Undo to_hf_state_dict; an unknown name keeps its spelling, and loading refuses it.

    ValueError: a matrix of queries or keys has another shape than `config` says.
    """
    converted = {}
    for hf_name, weight in weights.items():
        name = translate(hf_name.removeprefix("model."), FROM_HF)
        if n_heads := num_rotated_heads(name, config):
            shape = (n_heads * config.head_dim, config.dim)
            if weight.shape != shape:
                raise ValueError(f"{hf_name} has the shape {tuple(weight.shape)}; by its config.json it is {shape}")
            weight = unpermute_from_hf(weight, n_heads)
        converted[name] = weight
    return converted


def check_float16_range(name: str, weight: Tensor) -> None:
    """Refuse a weight that would be infinite in float16; ValueError names it."""
    largest = weight.abs().max().item()
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"--dtype float16: {name} holds {largest:g}, more than float16 can; bfloat16 can")


def hf_config(config: LLMConfig, **token_ids: Any) -> LlamaConfig:
    """Return the LlamaConfig of the same shape."""
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        rope_parameters=dict(config.rope_parameters),
        tie_word_embeddings=True,
        **token_ids,
    )


def to_hf(
    model: SpongeBob, tokenizer_dir: str | Path, folder: str | Path, dtype: str = "float32", meta: dict | None = None
) -> None:
    """Write config, safetensors, tokenizer, generation settings and a model card.

    Args:
        model: The model to export.
        tokenizer_dir: Folder of its tokenizer.
        folder: Created; may exist if it is empty.
        dtype: Of the written weights: float32, bfloat16 or float16.
        meta: Content of the .json, whose metrics the model card lists.
    Raises:
        ValueError: `folder` is not empty, or Llama or `dtype` cannot represent the model.
        OSError: It cannot be written; no file of it stays.
    """
    if dtype == "q8_0":
        raise ValueError("--dtype q8_0 is only for --format gguf; hf has float32, bfloat16 and float16")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another name, nothing is overwritten")
    tokenizer = load_tokenizer(tokenizer_dir)
    if across := sum("Ċ" in token[:-1] for token in tokenizer.get_vocab()):  # a line break in byte-level BPE
        warn(
            f"note: {across} tokens of {tokenizer_dir} reach across a line break. A message that begins with one is "
            "encoded differently by other programs: they encode the role's line together with it"
        )
    names = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNK}
    token_ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    llama = LlamaForCausalLM(hf_config(model.config, **token_ids))
    llama.load_state_dict(to_hf_state_dict(full_state_dict(model), model.config), strict=True)
    if dtype == "float16":
        for name, weight in llama.named_parameters():
            check_float16_range(name, weight)
    llama.to(getattr(torch, dtype))  # pyright: ignore[reportArgumentType] (transformers wraps it)
    llama.generation_config = GenerationConfig(**token_ids)
    try:
        with all_or_none(folder):
            llama.save_pretrained(folder)
            _add_fields_of_transformers_4(folder / "config.json")
            _save_tokenizer(tokenizer, folder, model.config.max_seq_len)
            card = model_card(folder.resolve().name, model, dtype, meta or {})
            (folder / "README.md").write_text(card, encoding="utf-8")
            for path in folder.iterdir():
                path.chmod(0o644)  # safetensors are written with mode 600
    except (OSError, SafetensorError) as error:
        raise write_error(folder, error) from error


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, max_seq_len: int) -> None:
    """Write the files of a tokenizer that begins a text as in training. A chat needs no <s>: its template writes it."""
    begin = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS}:1 $B:1", begin)  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # save() loses an OSError
    config = tokenizer_config(
        max_seq_len,
        add_bos_token=True,
        padding_side="left",  # answers are appended on the right
        model_input_names=["input_ids", "attention_mask"],  # else 4 adds token_type_ids, which Llama refuses
    )
    write_json(folder / "tokenizer_config.json", config)


CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: unknown
---
# {name}

A Llama of {millions:.1f} million weights, trained from scratch by SelfLLM-Engine: {shape.n_layers} blocks \
of width {shape.dim},
{shape.n_heads} query heads, {shape.n_kv_heads} key-value heads, {shape.vocab_size:,} tokens, a context of \
{shape.max_seq_len:,}; in {dtype}.

{metrics}
```python
from transformers import pipeline

{use}
```

LICENSE: these weights have none until their author states one here; the training data limits the choice. The program
that trained them is under the MIT license.
"""
CARD_METRICS = {
    "stage": "stage",
    "step": "optimizer steps",
    "tokens": "training tokens",
    "val_loss": "held-out loss, nats per token",
    "val_bits_per_byte": "held-out bits per byte",
    "on_sample": "trained on the bundled sample only",
}


def model_card(title: str, model: SpongeBob, dtype: str, meta: dict) -> str:
    """Return the README.md of a folder; metrics that `meta`, the .json of the weights, lacks are left out."""
    rows = []
    for key, label in CARD_METRICS.items():
        value = meta.get(key)
        if value not in (None, False):
            rows.append(f"| {label} | {_format_metric(value)} |")
    metrics = "\n".join(["| metric | value |", "|---|---|", *rows, ""]) if rows else ""
    prompt = '[{"role": "user", "content": "你好"}]' if meta.get("stage") != "pretrain" else '"从前"'
    answer = f"talk({prompt}, max_new_tokens=64, return_full_text=False)"
    use = f'talk = pipeline("text-generation", {json.dumps(title, ensure_ascii=False)})\nprint({answer})'
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return CARD.format(name=title, millions=millions, dtype=dtype, metrics=metrics, use=use, shape=model.config)


def _format_metric(value: Any) -> str:
    if value is True:
        return "yes"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _add_fields_of_transformers_4(path: Path) -> None:
    """Add what transformers 5 leaves out: older versions ignore rope_parameters and silently take theta 10000."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config["dtype"]}
    if rope["rope_type"] != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    write_json(path, config)
