"""Checks that losses, gradients, weights and fp16's loss scale are finite before anything is saved."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from engine.machine.runtime import Runtime

MAX_CONSECUTIVE_SKIPS = 50  # steps that fp16 may skip in a row; each halves the loss scale
NOT_FINITE_BETWEEN_STEPS = (
    "a loss or gradient between steps {} and {} was not finite; it did not reach the weights, and nothing was saved "
    "since. Try a lower --learning_rate, more --warmup_iters, or --dtype float32; --resume continues from the last "
    "state"
)
NOT_FINITE_AFTER_STEP = (
    "after step {} {} not finite, so nothing was saved since the last state. Try a lower --learning_rate, more "
    "--warmup_iters, or --dtype float32"
)
ONLY_OVERFLOWS = (
    "step {}: {} fp16 steps in a row overflowed and were skipped, the loss scale is {:g}. Try a lower --learning_rate, "
    "--dtype bfloat16 or float32; --resume continues from the last state"
)


def check_fp16_overflows(scaler: torch.amp.GradScaler, in_a_row: int, step: int) -> None:
    """Raise ValueError if fp16 does nothing but skip steps; a skipped step now and then is by design."""
    if in_a_row >= MAX_CONSECUTIVE_SKIPS or scaler.get_scale() < 1:
        raise ValueError(ONLY_OVERFLOWS.format(step, in_a_row, scaler.get_scale()))


def check_weights_finite(model: nn.Module, runtime: Runtime, step: int) -> None:
    """Raise ValueError if a weight is not finite.

    A finite gradient can make weights infinite, and the next step shows it only after they are saved.
    """
    shards = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    is_finite = torch.stack([torch.isfinite(shard.detach()).all() for shard in shards]).all()
    if any(runtime.sum([float(not is_finite)])):
        raise ValueError(NOT_FINITE_AFTER_STEP.format(step, "weights are"))
