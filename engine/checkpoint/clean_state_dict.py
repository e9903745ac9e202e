"""Clean the state dicts that people share: remove wrappers, prefixes and buffers, check dtypes.

Whatever is removed is said on stderr; whatever would be silently wrong is refused.
"""

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from Config import LLMConfig
from engine.console import printable, warn
from engine.corpus.file_types import HEADER_BYTES, detect_file_type
from engine.files import first_line
from model import rope_frequencies

WRAPPER_KEYS = ("model", "state_dict", "model_state_dict", "module", "weights", "params")  # {"model": weights, ...}
INNER_PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # in front of any module
OUTER_PREFIXES = ("module.", "_forward_module.", "model.")
WEIGHT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Some programs save these, which can be computed. The first three are the frequencies of RoPE.
BUFFER_RE = re.compile(
    r"(?:.*\.)?(?:rope\.freqs|freqs_cis|pos_cis|freqs_cos|freqs_sin|inv_freq|cos_cached|sin_cached|mask)"
)


def plain_weights(content: dict, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the content of a file into ({Meta's name: weight}, {name: buffer that can be computed}).

    Raises:
        ValueError: Something that is not a tensor, a weight under two names, packed weights, NaN or infinity.
    """
    wrapper = next((name for name in WRAPPER_KEYS if _holds_tensors(content.get(name))), None)
    if wrapper and not _holds_tensors(content):
        warn(f'{path}: the weights are taken out of "{wrapper}"')
        content = content[wrapper]
    for name, value in content.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ValueError(f"{path}: {printable(str(name))[:60]} is {type(value).__name__}, expected a named tensor")
    weights, stripped = dict(content), []
    for part in INNER_PREFIXES:
        if any(part in name for name in weights):
            weights = _rename(weights, {name: name.replace(part, "") for name in weights}, path)
            stripped.append(part)
    while prefix := next((part for part in OUTER_PREFIXES if os.path.commonprefix([*weights]).startswith(part)), ""):
        weights = _rename(weights, {name: name.removeprefix(prefix) for name in weights}, path)
        stripped.append(prefix)
    if stripped:
        warn(f"{path}: {', '.join(stripped)} removed from the names of its weights")
    buffers = {name: tensor for name, tensor in weights.items() if BUFFER_RE.fullmatch(name)}
    weights = {name: tensor for name, tensor in weights.items() if name not in buffers}
    _check_numbers(weights, path)
    return weights, buffers


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(part, Tensor) for part in value.values())


def _rename(weights: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise ValueError(f"{path}: holds weights twice, under names with and without a prefix")
    return renamed


def _check_numbers(weights: dict[str, Tensor], path: Path) -> None:
    known = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
    for name, tensor in weights.items():
        if tensor.dtype not in WEIGHT_DTYPES or tensor.layout != torch.strided:
            actual = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise ValueError(f"{path}: {printable(name)} is {actual}; weights are read in {known}, not packed")
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{path}: {printable(name)} holds NaN or infinity: these weights are broken")


def check_buffers(buffers: dict[str, Tensor], config: LLMConfig, path: Path) -> None:
    """Check a file's own rotary frequencies against those that the model would compute.

    Args:
        buffers: Of plain_weights; the frequencies are (D/2,), or cos + i sin (T, D/2) of every position.
        config: Of the model.
        path: File of the buffers, for messages.
    Raises:
        ValueError: Another head size or rope_theta, and the flag that sets it.
    """
    expected = rope_frequencies(config, torch.device("cpu"))
    for name, tensor in buffers.items():
        is_table = tensor.is_complex() and tensor.dim() == 2 and len(tensor) > 1
        freqs = tensor[1].angle() if is_table else tensor
        if not name.endswith(("rope.freqs", "freqs_cis", "pos_cis")) or freqs.is_complex() or freqs.dim() != 1:
            continue
        if len(freqs) != len(expected):
            n_heads = config.dim // (2 * len(freqs)) if len(freqs) else 0
            raise ValueError(f"{path}: {name} is for heads of {2 * len(freqs)} numbers: give --n_heads {n_heads}")
        if not torch.allclose(freqs.float(), expected, rtol=0.02):
            theta = float(freqs[-1].double()) ** (-len(freqs) / max(1, len(freqs) - 1))
            raise ValueError(
                f"{path}: {name} is not of rope_theta {config.rope_theta:g}, but of about {theta:.3g}: see --rope_theta"
            )


def explain_unreadable(path: Path, error: Exception) -> str:
    """Say in one line what a file is that torch cannot read as tensors; torch's own message has over twenty."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    if re.match(rb".{8}\{\s*\"", head, re.DOTALL):
        return "a safetensors file; save its tensors by torch.save"
    file_type = detect_file_type(head)
    if file_type and not head.startswith((b"PK", b"\x80")):  # torch writes zip and pickle files
        return f"{file_type.name}, no checkpoint"
    advice = "ask its author to save model.state_dict() instead"
    if pickled := re.search(r"(?:GLOBAL|global:?|class|type) ([\w]+(?:\.\w+)+)", str(error)):
        return f"it holds more than plain tensors: {pickled[1]}; {advice}"
    if "TorchScript" in str(error):
        return f"a TorchScript program, not weights; {advice}"
    return printable(re.sub(r"\x1b\[[\d;]*m", "", first_line(error)).split(" In PyTorch")[0])[:160]
