"""The weights a run publishes, whole or not at all. What resuming needs is in state.py.

results/pretrain.pth    bare state dict, fp32, Meta's names: any script that reads published weights loads it
results/pretrain.json   shape, parent, tokenizer, validation figures, flags
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from Config import LLMConfig, scale_rope
from engine.checkpoint.clean_state_dict import check_buffers, explain_unreadable, plain_weights
from engine.console import print0, printable, warn
from engine.files import atomic_write, first_line, write_json
from engine.machine.parallel import full_tensor
from engine.options import ORIGINAL_NAMES, ROAD, Checkpoint
from engine.tokenizer import fingerprint
from model import SpongeBob

# -------------------------------------------------------------------------------------------------- writing


def full_state_dict(model: SpongeBob, keep: bool = True) -> dict[str, Tensor]:
    """The fp32 state dict on the CPU. Under FSDP every rank has to call this; {} for those that do not keep it."""
    weights = {}
    for name, parameter in model.named_parameters():
        full = full_tensor(parameter.detach())
        if keep:
            weights[name] = full.cpu().float()
    return add_tied_output(weights) if keep else {}


def add_tied_output(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the tied matrix under both of its names; a file stores it once."""
    return weights | {"output.weight": weights["tok_embeddings.weight"]}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of the weights: where the file lies and what it is called does not matter."""
    total = hashlib.blake2b(digest_size=6)
    for name, weight in sorted(weights.items()):
        total.update(name.encode() + weight.detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def save_weights(path: Path, weights: dict[str, Tensor], meta: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: torch.save(weights, temporary))
    write_json(path.with_suffix(".json"), meta)


# -------------------------------------------------------------------------------------------------- reading


def read_tensors(path: Path) -> dict:
    """A file of tensors and plain values. Pickled code is refused, whoever sent the file."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name the .pth file that is meant")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip reader and tensor code each raise their own kind
        raise ValueError(
            f"{path}: not a readable checkpoint of plain tensors ({explain_unreadable(path, error)})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected a dict of tensors")
    return content


def read_meta(path: Path) -> dict:
    """What the .json beside a .pth says; {} when there is none (weights published by others)."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); move it away to read the shape off the weights") from None
    kinds = {"config": dict, "tokenizer": str, "stage": str}
    odd = [
        name for name, kind in kinds.items() if isinstance(meta, dict) and not isinstance(meta.get(name, kind()), kind)
    ]
    if odd or not isinstance(meta, dict):
        what = ", ".join(odd) or "its content"
        raise ValueError(
            f"{file}: {what} is not as this program writes it; move it away to read the shape off the weights"
        )
    return meta


def shape_of(weights: dict[str, Tensor], path: Path, n_heads: int | None, rope_theta: float | None) -> dict:
    """Width, depth, vocabulary, hidden size and key-value heads as the tensors show; 8 heads and theta 1e6 assumed."""
    layers = {int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))}
    try:
        vocab_size, dim = weights["tok_embeddings.weight"].shape
        kv_dim, hidden_dim = (
            weights[f"layers.0.{name}.weight"].shape[0] for name in ("attention.wk", "feed_forward.w1")
        )
    except (KeyError, ValueError, AttributeError) as error:
        names = printable(", ".join(list(weights)[:3])) or "none"
        hint = (
            "; these are Hugging Face's, export.py writes them, nothing here reads them" if "self_attn" in names else ""
        )
        raise ValueError(
            f"{path}: no LLaMA weights with Meta's names in it (no {error}; its names: {names}{hint})"
        ) from None
    heads, theta = n_heads or 8, rope_theta or 1e6
    taken = " and ".join(
        f"{words} {'given' if given else f'assumed ({name})'}"
        for words, given, name in (
            (f"{heads} heads are", n_heads, "--n_heads"),
            (f"RoPE theta {theta:g} is", rope_theta, "--rope_theta"),
        )
    )
    print0(f"{path}: no .json beside it, the shape is read off the tensors; {taken}")
    return {
        "dim": dim,
        "n_layers": len(layers),
        "n_heads": heads,
        "n_kv_heads": kv_dim * heads // dim,
        "vocab_size": vocab_size,
        "hidden_dim": hidden_dim,
        "rope_theta": theta,
    }


def check_names_and_shapes(
    path: Path, expected: dict[str, tuple], found: dict[str, tuple], reasons: Sequence[str] = ()
) -> None:
    """ValueError naming what is missing, unexpected or of another shape, and the `reasons` that were found already."""
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    if problems := sorted([*problems, *reasons]):
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path}: does not fit the model: {'; '.join(problems[:5])}{more}")


def load_weights(model: SpongeBob, weights: dict[str, Tensor], path: Path) -> None:
    """Strictly: every name and shape must fit. Only output.weight may be absent, it is the embedding."""
    tied = weights.get("tok_embeddings.weight")
    weights = {"output.weight": tied, **weights} if tied is not None else weights
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    check_names_and_shapes(path, expected, found)
    assert tied is not None  # or it would be missing
    if not torch.equal(weights["output.weight"], tied):
        raise ValueError(f"{path}: output.weight differs from tok_embeddings.weight, but this model ties them")
    model.load_state_dict(weights, strict=True)


def load_model(
    path: Path,
    *,
    n_heads: int | None = None,
    rope_theta: float | None = None,
    max_seq_len: int | None = None,
    rope_scaling: float | None = None,
) -> tuple[SpongeBob, dict]:
    """The model of a .pth with the shape its .json says, and that .json's content; `rope_scaling`: see `stretched`."""
    (weights, buffers), meta = plain_weights(read_tensors(path), path), read_meta(path)
    for name, value in {"n_heads": n_heads, "rope_theta": rope_theta}.items():
        if value is not None and value != meta.get("config", {}).get(name, value):
            raise ValueError(
                f"--{name} {value}: {path.with_suffix('.json')} says {meta['config'][name]}; leave the flag out"
            )
    shape = dict(meta["config"]) if "config" in meta else shape_of(weights, path, n_heads, rope_theta)
    trained_for = shape.get("max_seq_len", 0)
    if max_seq_len:
        shape["max_seq_len"] = max_seq_len
    try:
        config = LLMConfig(**shape)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, RuntimeError) as error:
        source = path.with_suffix(".json") if "config" in meta else path
        raise ValueError(f"{source}: not the shape of a model here ({first_line(error)})") from None
    check_buffers(buffers, config, path)
    if rope_scaling:
        if not 0 < trained_for < config.max_seq_len:
            known = f"{path} was trained with rows of {trained_for}" if trained_for else f"no .json beside {path} says"
            raise ValueError(
                f"--rope_scaling {rope_scaling:g} is for rows longer than before: {known}, "
                f"--max_seq_len is {config.max_seq_len}"
            )
        config.rope_parameters = scale_rope(config.rope_parameters, rope_scaling, trained_for)
        print0(f"{path}: rotary positions stretched by {rope_scaling:g}, rows {trained_for} -> {config.max_seq_len}")
    model = SpongeBob(config)
    load_weights(model, weights, path)
    return model, meta


def open_checkpoint(
    path: Path,
    tokenizer: Tokenizer,
    tokenizer_dir: str | Path,
    *,
    max_seq_len: int | None = None,
    n_heads: int | None = None,
    rope_theta: float | None = None,
    rope_scaling: float | None = None,
    flag: str = "--ckpt",
) -> tuple[SpongeBob, dict]:
    """A checkpoint's model and its .json, checked against the tokenizer.

    A missing one is an error that says which command makes it, or which `flag` names another.
    """
    if not path.exists():
        made_by = ROAD.get(path.stem, "an earlier stage, or a published checkpoint")
        raise ValueError(f"{path}: no such checkpoint. Make it with: {made_by} (or name another with {flag})")
    if path.stem in ORIGINAL_NAMES.values():
        print0(f"{path}: the original scripts' name, taken as this stage's model")
    shape = {"n_heads": n_heads, "rope_theta": rope_theta, "max_seq_len": max_seq_len, "rope_scaling": rope_scaling}
    model, meta = load_model(path, **shape)
    check_tokenizer(path, meta, tokenizer, tokenizer_dir)
    model.num_known_tokens = tokenizer.get_vocab_size()
    if model.config.vocab_size < model.num_known_tokens:
        raise ValueError(f"{path}: {model.config.vocab_size} tokens, but {tokenizer_dir} has {model.num_known_tokens}")
    if model.config.vocab_size > model.num_known_tokens:
        print0(
            f"{path}: {model.config.vocab_size} tokens, {tokenizer_dir} has {model.num_known_tokens}: the others "
            "are never sampled"
        )
    return model, meta


def open_chosen(chosen: Checkpoint, tokenizer: Tokenizer, path: Path | None = None) -> tuple[SpongeBob, dict]:
    """The checkpoint that --model_mode, --long and --ckpt mean, or another one by the same flags."""
    return open_checkpoint(
        path or chosen.path,
        tokenizer,
        chosen.tokenizer_dir,
        max_seq_len=chosen.max_seq_len,
        n_heads=chosen.n_heads,
        rope_theta=chosen.rope_theta,
    )


def config_dict(config: LLMConfig) -> dict:
    """The numbers from which LLMConfig(**...) makes the same shape again."""
    names = (
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "vocab_size",
        "hidden_dim",
        "multiple_of",
        "norm_eps",
        "max_seq_len",
        "rope_theta",
        "dropout",
        "rope_parameters",
    )
    return {name: getattr(config, name) for name in names}


def check_tokenizer(path: Path, meta: dict, tokenizer: Tokenizer, tokenizer_dir: str | Path) -> None:
    """Refuse weights that were trained with another tokenizer: their shapes would fit, the output would be garbage."""
    if "tokenizer" not in meta:
        warn(f"warning: {path} does not say which tokenizer it needs; {tokenizer_dir} is used (--tokenizer_dir)")
    elif meta["tokenizer"] not in (known := fingerprint(tokenizer), fingerprint(tokenizer, of_all=True)):
        raise ValueError(
            f"{path} was trained with tokenizer {meta['tokenizer']}, {tokenizer_dir} is {known}: "
            "give the right one with --tokenizer_dir"
        )
