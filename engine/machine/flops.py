"""Model FLOPs, and the share of the hardware's peak that a run turns into them (MFU, arXiv:2204.02311, appendix B)."""

import torch

from Config import LLMConfig
from engine.machine.gpu_specs import gpu_tflops
from engine.machine.runtime import Runtime
from model import SpongeBob


def flops_per_token(config: LLMConfig, parameters: int) -> float:
    """Forward and backward of one token: 6 for each weight, 12 L C T for attention, half of it behind the diagonal.

    T is the full row, as is usual; packed documents are shorter and cost less.
    """
    return 6 * parameters + 12 * config.n_layers * config.dim * config.max_seq_len / 2


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of the device's half-precision units; None where nobody wrote it down, or others are used."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    tflops = gpu_tflops(torch.cuda.get_device_name(device))
    return tflops and 1e12 * tflops


def model_flops_utilization(rt: Runtime, model: SpongeBob, tokens_per_second: float) -> float | None:
    """MFU: the share of the peak of all devices that the model's own products reach; None without a known peak."""
    of_device = peak_flops(rt.device, rt.dtype)
    if of_device is None:
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return tokens_per_second * flops_per_token(model.config, parameters) / (of_device * rt.world_size)
