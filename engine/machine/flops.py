"""Model FLOPs and model FLOPs utilization (MFU, arXiv:2204.02311, appendix B)."""

import torch

from Config import LLMConfig
from engine.machine.gpu_specs import gpu_tflops
from engine.machine.runtime import Runtime
from model import SpongeBob


def flops_per_token(config: LLMConfig, parameters: int) -> float:
    """Return the FLOPs of one token, forward and backward: 6 per weight, and 12 L C T / 2 for causal attention.

    T is the length of the row, as is usual; packed documents are shorter and take less.
    """
    return 6 * parameters + 12 * config.n_layers * config.dim * config.max_seq_len / 2


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of the device in half precision; None if it is unknown or the dtype is another."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    tflops = gpu_tflops(torch.cuda.get_device_name(device))
    return tflops and 1e12 * tflops


def model_flops_utilization(rt: Runtime, model: SpongeBob, tokens_per_second: float) -> float | None:
    """Return the fraction of all devices' peak that the model's own FLOPs reach; None without a known peak."""
    peak = peak_flops(rt.device, rt.dtype)
    if peak is None:
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return tokens_per_second * flops_per_token(model.config, parameters) / (peak * rt.world_size)
