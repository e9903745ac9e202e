"""Files a run leaves: published weights (.pth + .json) and what resuming needs (.state/). Whole or not at all.

results/pretrain.pth            bare state dict, fp32, Meta's names: any script that reads published weights loads it
results/pretrain.json           shape, parent, tokenizer, validation figures, flags
results/pretrain.state/00000100 the newest states: weights, optimizer, random states, progress
"""

import json
import os
import random
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from Config import LLMConfig
from model import SpongeBob

KEPT_STATES = 2


# -------------------------------------------------------------------------------------------------- writing


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then rename it: a reader never sees half of one, a crash leaves the old."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def cpu_weights(model: SpongeBob) -> dict[str, Tensor]:
    """The fp32 state dict on the CPU. The tied matrix stands there under both names, stored once."""
    state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    state["output.weight"] = state["tok_embeddings.weight"]
    return state


def save_weights(path: Path, weights: dict[str, Tensor], meta: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: torch.save(weights, temporary))
    write_json(path.with_suffix(".json"), meta)


# -------------------------------------------------------------------------------------------------- reading


def read_tensors(path: Path) -> dict:
    """A file of tensors and plain values. Pickled code is refused, whoever sent the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip reader and tensor code each raise their own kind
        raise ValueError(f"{path}: not a readable checkpoint of plain tensors ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected a dict of tensors")
    return content


def read_meta(path: Path) -> dict:
    """What the .json beside a .pth says; {} when there is none (weights published by others)."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); move it away to read the shape off the weights") from None


def shape_of(weights: dict[str, Tensor], path: Path, n_heads: int | None, rope_theta: float | None) -> dict:
    """Width, depth, vocabulary, hidden size and key-value heads as the tensors show; 8 heads and theta 1e6 assumed."""
    layers = {int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))}
    try:
        vocab_size, dim = weights["tok_embeddings.weight"].shape
        kv_dim, hidden_dim = (
            weights[f"layers.0.{name}.weight"].shape[0] for name in ("attention.wk", "feed_forward.w1")
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no LLaMA weights with Meta's names in it ({error})") from None
    heads, theta = n_heads or 8, rope_theta or 1e6
    print(f"{path}: no .json beside it, the shape is read off the tensors; {heads} heads and RoPE theta {theta:g} are "
          f"{'given' if n_heads and rope_theta else 'assumed (--n_heads, --rope_theta)'}")  # fmt: skip
    return {
        "dim": dim, "n_layers": len(layers), "n_heads": heads, "n_kv_heads": kv_dim * heads // dim,
        "vocab_size": vocab_size, "hidden_dim": hidden_dim, "rope_theta": theta,
    }  # fmt: skip


def load_weights(model: SpongeBob, weights: dict[str, Tensor], path: Path) -> None:
    """Strictly: every name and shape must fit. Only output.weight may be absent, it is the embedding."""
    tied = weights.get("tok_embeddings.weight")
    weights = {"output.weight": tied, **weights} if tied is not None else weights
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected.keys() & found.keys() if expected[name] != found[name]
    ]  # fmt: skip
    if not problems and not torch.equal(weights["output.weight"], tied):
        problems = ["output.weight differs from tok_embeddings.weight, but this model ties them"]
    if problems:
        problems.sort()
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path}: does not fit the model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(weights, strict=True)


def load_model(
    path: Path, *, n_heads: int | None = None, rope_theta: float | None = None, max_seq_len: int | None = None
) -> tuple[SpongeBob, dict]:
    """The model of a .pth with the shape its .json says, and that .json's content."""
    weights, meta = read_tensors(path), read_meta(path)
    for name, value in {"n_heads": n_heads, "rope_theta": rope_theta}.items():
        if value is not None and value != meta.get("config", {}).get(name, value):
            raise ValueError(
                f"--{name} {value}: {path.with_suffix('.json')} says {meta['config'][name]}; leave the flag out"
            )
    shape = dict(meta["config"]) if "config" in meta else shape_of(weights, path, n_heads, rope_theta)
    if max_seq_len:
        shape["max_seq_len"] = max_seq_len
    model = SpongeBob(LLMConfig(**shape))
    load_weights(model, weights, path)
    return model, meta


def shape_json(config: LLMConfig) -> dict:
    """The numbers from which LLMConfig(**...) makes the same shape again."""
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "multiple_of", "norm_eps",
             "max_seq_len", "rope_theta", "dropout", "rope_parameters")  # fmt: skip
    return {name: getattr(config, name) for name in names}


def check_tokenizer(path: Path, meta: dict, fingerprint: str, tokenizer_dir: str) -> None:
    """6400 rows fit any 6400-token vocabulary and give silent garbage with the wrong one."""
    if "tokenizer" not in meta:
        print(f"warning: {path} does not say which tokenizer it needs; {tokenizer_dir} is used (--tokenizer_dir)")
    elif meta["tokenizer"] != fingerprint:
        raise ValueError(
            f"{path} was trained with tokenizer {meta['tokenizer']}, {tokenizer_dir} is {fingerprint}: "
            "give the right one with --tokenizer_dir"
        )


# --------------------------------------------------------------------------------------------------- states


def random_states() -> dict:
    """Every generator of this process, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global one is meant)
    states = {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    random.setstate((3, tuple(states["python"]), None))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_state(folder: Path, step: int, content: dict) -> None:
    """Write folder/<step>/ whole, with a manifest of its size and checksum, then drop all but the newest states."""
    final = folder / f"{step:08d}"
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_whole(temporary / "state.pt", lambda path: torch.save(content, path))
        write_json(temporary / "manifest.json", {"step": step, "files": {"state.pt": _seal(temporary / "state.pt")}})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(_states(folder))[:-KEPT_STATES]:
        shutil.rmtree(old)


def _states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]


def _seal(path: Path) -> list[int]:
    """[size, CRC-32] of a file: enough to notice what a broken disk or a stopped copy does to it."""
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


def load_newest_state(folder: Path) -> dict | None:
    """The newest whole state, or None. A damaged one is named and the one before it is used."""
    for path in sorted(_states(folder), reverse=True):
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            damaged = [name for name, seal in manifest["files"].items() if _seal(path / name) != seal]
            if not damaged:
                return read_tensors(path / "state.pt")
            reason = f"{', '.join(damaged)} does not match its checksum"
        except (OSError, ValueError, KeyError) as error:
            reason = str(error)
        print(f"warning: {path} is damaged ({reason}), using the state before it")
    return None
