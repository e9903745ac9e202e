"""Write and read the weights that a run publishes. What resuming needs is in training_state.py.

results/pretrain.pth    bare state dict, fp32, Meta's names: any script that reads published weights loads it
results/pretrain.json   digests of these weights and of their ancestors, shape, tokenizer, validation metrics, flags
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from Config import LLMConfig, scale_rope
from engine.checkpoint.clean_state_dict import check_buffers, explain_unreadable, plain_weights
from engine.console import printable, warn
from engine.files import atomic_write, first_line, read_json, write_json
from engine.machine.parallel import full_tensor
from engine.options import ORIGINAL_NAMES, ROAD, Checkpoint
from engine.tokenizer import fingerprint
from model import SpongeBob

CONFIG_FIELDS = (
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

DESCRIPTION = ("config", "tokenizer", "stage", "on_sample")  # what a .json says of other weights of its run, too

# -------------------------------------------------------------------------------------------------- writing


def full_state_dict(model: SpongeBob, keep: bool = True) -> dict[str, Tensor]:
    """Return the fp32 state dict on the CPU.

    Under FSDP every rank must call this; ranks with `keep` False get {}.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        full = full_tensor(parameter.detach())
        if keep:
            weights[name] = full.cpu().float()
    return add_tied_output(weights) if keep else {}


def add_tied_output(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the tied matrix under both of its names; a file stores it once."""
    return weights | {"output.weight": weights["tok_embeddings.weight"]}


def config_dict(config: LLMConfig) -> dict:
    """Return the values from which LLMConfig(**values) makes the same shape again."""
    return {name: getattr(config, name) for name in CONFIG_FIELDS}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return twelve hex digits of a state dict, independent of the file's name and folder."""
    digest = hashlib.blake2b(digest_size=6)
    for name, weight in sorted(weights.items()):
        digest.update(name.encode() + weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, weights: dict[str, Tensor], meta: dict) -> None:
    """Write the .pth and its .json, each whole or not at all; the .json says by a digest which weights it describes.

    Args:
        path: The .pth; its folder is created.
        weights: The state dict.
        meta: Content of the .json.
    """
    atomic_write(path, lambda temporary: torch.save(weights, temporary))
    write_json(path.with_suffix(".json"), {"weights": weights_hash(weights), **meta})


# -------------------------------------------------------------------------------------------------- reading


def read_tensors(path: Path) -> dict:
    """Read a file of tensors and plain values; pickled code is refused, whatever its source.

    Raises:
        ValueError: No such file, or not a dict of tensors and plain values.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name the .pth file that is meant")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip reader and tensor code each raise their own kind
        reason = explain_unreadable(path, error)
        raise ValueError(f"{path}: not a readable checkpoint of plain tensors ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected a dict of tensors")
    return content


def read_meta(path: Path) -> dict:
    """Read the .json of a .pth; {} if there is none (weights published by others).

    Raises:
        ValueError: Not JSON, or a value of another type than this program writes.
    """
    file, advice = path.with_suffix(".json"), "; move it away to read the shape off the weights"
    if not file.is_file():
        return {}
    meta = read_json(file, advice)
    types = {"config": dict, "tokenizer": str, "stage": str, "weights": str, "ancestors": list}
    if invalid := [name for name, type_ in types.items() if not isinstance(meta.get(name, type_()), type_)]:
        raise ValueError(f"{file}: {', '.join(invalid)} is not as this program writes it{advice}")
    return meta


def infer_config(weights: dict[str, Tensor], path: Path, n_heads: int | None, rope_theta: float | None) -> dict:
    """Read width, depth, vocabulary, hidden size and key-value heads off the tensors, and say what is assumed.

    Args:
        weights: A state dict with Meta's names.
        path: File of the weights, for messages.
        n_heads: Number of query heads, which no tensor shows (default: 8).
        rope_theta: Base of the rotary frequencies, which no tensor shows (default: 1e6).
    Raises:
        ValueError: No LLaMA weights with Meta's names.
    """
    try:
        vocab_size, dim = weights["tok_embeddings.weight"].shape
        kv_dim, _ = weights["layers.0.attention.wk.weight"].shape
        hidden_dim, _ = weights["layers.0.feed_forward.w1.weight"].shape
    except (KeyError, ValueError, AttributeError) as error:
        names = printable(", ".join(list(weights)[:3])) or "none"
        hint = "; these are Hugging Face's: export.py --import_hf reads their folder" if "self_attn" in names else ""
        raise ValueError(
            f"{path}: no LLaMA weights with Meta's names in it (no {error}; its names: {names}{hint})"
        ) from None
    heads_note = "given" if n_heads else "assumed (--n_heads)"
    theta_note = "given" if rope_theta else "assumed (--rope_theta)"
    n_heads, rope_theta = n_heads or 8, rope_theta or 1e6
    warn(
        f"{path}: no .json next to it, the shape is read off the tensors; {n_heads} heads are {heads_note} and "
        f"RoPE theta {rope_theta:g} is {theta_note}"
    )
    return {
        "dim": dim,
        "n_layers": len({name.split(".")[1] for name in weights if re.match(r"layers\.\d+\.", name)}),
        "n_heads": n_heads,
        "n_kv_heads": kv_dim * n_heads // dim,
        "vocab_size": vocab_size,
        "hidden_dim": hidden_dim,
        "rope_theta": rope_theta,
    }


def check_names_and_shapes(
    path: Path, expected: dict[str, tuple], actual: dict[str, tuple], reasons: Sequence[str] = ()
) -> None:
    """Refuse tensors that do not fit the model.

    Args:
        path: File of the tensors, for the message.
        expected: {name: shape} of the model.
        actual: {name: shape} of the file.
        reasons: Problems that were found before, listed with the others.
    Raises:
        ValueError: Names what is missing, unexpected or of another shape.
    """
    problems = [*reasons, *(f"missing {name}" for name in expected.keys() - actual.keys())]
    problems += [f"unexpected {name}" for name in actual.keys() - expected.keys()]
    for name in expected.keys() & actual.keys():
        if expected[name] != actual[name]:
            problems.append(f"{name} is {actual[name]}, expected {expected[name]}")
    if problems:
        problems.sort()
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path}: does not fit the model: {'; '.join(problems[:5])}{more}")


def load_weights(model: SpongeBob, weights: dict[str, Tensor], path: Path) -> None:
    """Load a state dict strictly: every name and shape must fit; only output.weight, which is tied, may be absent.

    Args:
        model: Receives the weights.
        weights: A state dict with Meta's names, in any floating-point dtype.
        path: File of the weights, for messages.
    Raises:
        ValueError: A name or shape does not fit, or output.weight is not the embedding.
    """
    embedding = weights.get("tok_embeddings.weight")
    weights = {"output.weight": embedding, **weights} if embedding is not None else weights
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    actual = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    check_names_and_shapes(path, expected, actual)
    assert embedding is not None  # or it would be missing
    if not torch.equal(weights["output.weight"], embedding):
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
    """Load the model of a .pth, in the shape that its .json or else its tensors give.

    Args:
        path: The .pth.
        n_heads, rope_theta: Only for a .pth without .json (defaults: 8 and 1e6).
        max_seq_len: Context length in tokens (default: the one in the .json).
        rope_scaling: Factor of Llama 3.1's RoPE scaling, for a `max_seq_len` above the trained one (docs/scaling.md).
    Returns:
        The model in float32 on the CPU, and the content of its .json with the digest of the weights. Of a .json that
        describes other weights, only what holds for these, too.
    Raises:
        ValueError: No such file, not LLaMA weights, or flags that contradict the .json.
    """
    weights, buffers = plain_weights(read_tensors(path), path)
    meta, meta_file = read_meta(path), path.with_suffix(".json")
    for name, value in {"n_heads": n_heads, "rope_theta": rope_theta}.items():
        if value is not None and value != meta.get("config", {}).get(name, value):
            raise ValueError(f"--{name} {value}: {meta_file} says {meta['config'][name]}; leave the flag out")
    shape = dict(meta["config"]) if "config" in meta else infer_config(weights, path, n_heads, rope_theta)
    trained_len = shape.get("max_seq_len", 0)
    if max_seq_len:
        shape["max_seq_len"] = max_seq_len
    try:
        config = LLMConfig(**shape)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, RuntimeError) as error:
        source = meta_file if "config" in meta else path
        raise ValueError(f"{source}: not the shape of a model here ({first_line(error)})") from None
    check_buffers(buffers, config, path)
    if rope_scaling:
        if not 0 < trained_len < config.max_seq_len:
            known = f"{path} was trained with rows of {trained_len}" if trained_len else f"{meta_file} is missing"
            raise ValueError(
                f"--rope_scaling {rope_scaling:g} is for rows longer than before: {known}, "
                f"--max_seq_len is {config.max_seq_len}"
            )
        config.rope_parameters = scale_rope(config.rope_parameters, rope_scaling, trained_len)
        warn(f"{path}: RoPE scaled by {rope_scaling:g}, rows {trained_len} -> {config.max_seq_len}")
    model = SpongeBob(config)
    load_weights(model, weights, path)
    digest = weights_hash(model.state_dict())
    if meta.get("weights", digest) != digest:
        warn(
            f"warning: {meta_file} describes other weights than {path} has, so its figures are not used: a run was "
            "killed between the two (--resume writes both again), or one of them was replaced"
        )
        meta = {name: meta[name] for name in DESCRIPTION if name in meta}
    return model, meta | {"weights": digest}


def open_checkpoint(
    path: Path,
    tokenizer: Tokenizer,
    tokenizer_dir: str | Path,
    *,
    flag: str = "--ckpt",
    **shape: Any,
) -> tuple[SpongeBob, dict]:
    """Load a model and check that it fits the tokenizer.

    Args:
        path: The .pth.
        tokenizer: Encodes for the model; ids above its size are never sampled.
        tokenizer_dir: Folder of the tokenizer, for messages.
        flag: Named in the error message as the way to choose another checkpoint.
        shape: Passed to load_model.
    Returns:
        The model in float32 on the CPU, and the content of its .json, as `load_model` returns it.
    Raises:
        ValueError: No such file, not LLaMA weights, trained with another tokenizer, or a vocabulary smaller than the
            tokenizer's.
    """
    if not path.exists():
        made_by = ROAD.get(path.stem, "an earlier stage, or a published checkpoint")
        raise ValueError(f"{path}: no such checkpoint. Make it with: {made_by} (or name another with {flag})")
    if path.stem in ORIGINAL_NAMES.values():
        warn(f"{path}: the original scripts' name, taken as this stage's model")
    model, meta = load_model(path, **shape)
    check_tokenizer(path, meta, tokenizer, tokenizer_dir)
    vocab_size = model.config.vocab_size
    model.num_known_tokens = tokenizer.get_vocab_size()
    if vocab_size < model.num_known_tokens:
        raise ValueError(f"{path}: {vocab_size} tokens, but {tokenizer_dir} has {model.num_known_tokens}")
    if vocab_size > model.num_known_tokens:
        known = f"{tokenizer_dir} has {model.num_known_tokens}"
        warn(f"{path}: {vocab_size} tokens, {known}: the others are never sampled")
    return model, meta


def open_chosen(args: Checkpoint, tokenizer: Tokenizer, path: Path | None = None) -> tuple[SpongeBob, dict]:
    """Open the checkpoint that --model_mode, --long and --ckpt choose.

    Args:
        args: The flags.
        tokenizer: Of --tokenizer_dir.
        path: Another .pth, opened by the same flags.
    """
    return open_checkpoint(
        path or args.path,
        tokenizer,
        args.tokenizer_dir,
        max_seq_len=args.max_seq_len,
        n_heads=args.n_heads,
        rope_theta=args.rope_theta,
    )


def check_tokenizer(path: Path, meta: dict, tokenizer: Tokenizer, tokenizer_dir: str | Path) -> None:
    """Refuse weights that were trained with another tokenizer: their shapes would fit, the output would be garbage.

    Args:
        path: The .pth, for messages.
        meta: Content of its .json; without "tokenizer" there is a warning.
        tokenizer: Compared by its fingerprint.
        tokenizer_dir: Its folder, for messages.
    Raises:
        ValueError: The fingerprints differ.
    """
    if "tokenizer" not in meta:
        warn(f"warning: {path} does not say which tokenizer it needs; {tokenizer_dir} is used (--tokenizer_dir)")
    elif meta["tokenizer"] not in (known := fingerprint(tokenizer), fingerprint(tokenizer, of_all=True)):
        raise ValueError(
            f"{path} was trained with tokenizer {meta['tokenizer']}, {tokenizer_dir} is {known}: "
            "give the right one with --tokenizer_dir"
        )
