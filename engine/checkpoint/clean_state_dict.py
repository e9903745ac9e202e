"""Weights in the forms in which people hand them on, made plain: wrappers, prefixes, buffers, dtypes.

Whatever is taken off is said, whatever would be silently wrong is refused.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from Config import LLMConfig
from engine.console import print0, printable
from engine.corpus.file_types import HEADER_BYTES, detect_file_type
from model import rope_frequencies

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "weights", "params")  # {"model": weights, ...}
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # what programs put before a module
IN_FRONT = ("module.", "_forward_module.", "model.")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# What can be computed, and is saved by some programs. The first three tell the frequencies of RoPE.
BUFFER = re.compile(
    r"(?:.*\.)?(?:rope\.freqs|freqs_cis|pos_cis|freqs_cos|freqs_sin|inv_freq|cos_cached|sin_cached|mask)"
)


def plain_weights(content: dict, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """({Meta's name: tensor}, {name: buffer that can be computed}) of what a file holds."""
    wrapper = next((name for name in WRAPPERS if _holds_tensors(content.get(name))), None)
    if wrapper and not _holds_tensors(content):
        print0(f'{path}: the weights are taken out of "{wrapper}"')
        content = content[wrapper]
    for name, value in content.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{path}: {printable(str(name))[:60]} is {type(value).__name__}, expected a tensor of its name"
            )
    weights, taken = dict(content), []
    for part in ANYWHERE:
        if any(part in name for name in weights):
            weights, taken = _renamed(weights, {name: name.replace(part, "") for name in weights}, path), [*taken, part]
    while weights and (part := next((p for p in IN_FRONT if all(name.startswith(p) for name in weights)), None)):
        weights, taken = _renamed(weights, {name: name.removeprefix(part) for name in weights}, path), [*taken, part]
    if taken:
        print0(f"{path}: {', '.join(taken)} taken off the names of its weights")
    buffers = {name: tensor for name, tensor in weights.items() if BUFFER.fullmatch(name)}
    weights = {name: tensor for name, tensor in weights.items() if name not in buffers}
    _check_numbers(weights, path)
    return weights, buffers


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(part, Tensor) for part in value.values())


def _renamed(weights: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise ValueError(f"{path}: holds weights twice, under names with and without a prefix")
    return renamed


def _check_numbers(weights: dict[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise ValueError(
                f"{path}: {printable(name)} is {kind}; weights are read in {_names(DTYPES)}, not packed ones"
            )
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{path}: {printable(name)} holds NaN or infinity: these weights are broken")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_buffers(buffers: dict[str, Tensor], config: LLMConfig, path: Path) -> None:
    """ValueError where a file's own rotary frequencies are not those that the model would compute."""
    wanted = rope_frequencies(config, torch.device("cpu"))
    for name, tensor in buffers.items():
        found = tensor[1].angle() if tensor.is_complex() and tensor.dim() == 2 and len(tensor) > 1 else tensor
        if not name.endswith(("rope.freqs", "freqs_cis", "pos_cis")) or found.is_complex() or found.dim() != 1:
            continue
        if len(found) != len(wanted):
            heads = config.dim // (2 * len(found)) if len(found) else 0
            raise ValueError(f"{path}: {name} is for heads of {2 * len(found)} numbers: give --n_heads {heads}")
        if not torch.allclose(found.float(), wanted, rtol=0.02):
            theta = float(found[-1].double()) ** (-len(found) / max(1, len(found) - 1))
            raise ValueError(
                f"{path}: {name} is not of rope_theta {config.rope_theta:g}, but of about {theta:.3g}: see --rope_theta"
            )


def explain_unreadable(path: Path, error: Exception) -> str:
    """One line on what a file is that torch cannot read as tensors: torch's own runs over twenty."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    found = detect_file_type(head)
    if found and not head.startswith(b"PK"):
        return f"{found[0]}, no checkpoint"
    if re.match(rb".{8}\{\s*\"", head, re.DOTALL):
        return "a safetensors file; save its tensors by torch.save"
    if pickled := re.search(r"(?:GLOBAL|global:?|class|type) ([\w]+(?:\.\w+)+)", str(error)):
        return f"it holds more than plain tensors: {pickled[1]}. Whoever made it can save model.state_dict() instead"
    if "TorchScript" in str(error):
        return "a TorchScript program, not weights. Whoever made it can save model.state_dict() instead"
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return printable(re.sub(r"\x1b\[[\d;]*m", "", first).split(" In PyTorch")[0])[:160]
