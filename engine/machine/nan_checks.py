"""What must be a finite number before anything is kept: losses, gradients, weights, and fp16's loss scale."""

import torch
from torch import nn

from engine.machine.runtime import Runtime

MAX_CONSECUTIVE_SKIPS = 50  # steps of fp16 that may overflow one after another: the scale would be 2**-50 of its first
NOT_FINITE_BETWEEN_STEPS = (
    "a loss or gradient between steps {} and {} was not finite; it was kept from the weights and nothing was saved "
    "since. Try a lower --learning_rate, more --warmup_iters, or --dtype float32; --resume goes on from the last state"
)
NOT_FINITE_AFTER_STEP = (
    "after step {} {} not finite, so nothing was saved since the last state. Try a lower --learning_rate, more "
    "--warmup_iters, or --dtype float32"
)
ONLY_OVERFLOWS = (
    "step {}: {} fp16 steps in a row overflowed and were skipped, the loss scale is {:g}. Try a lower --learning_rate, "
    "--dtype bfloat16 or float32; --resume goes on from the last state"
)


def check_fp16_overflows(scaler: torch.amp.GradScaler, in_a_row: int, step: int) -> None:
    """fp16 skips a step now and then by design; ValueError when it does nothing else."""
    if in_a_row >= MAX_CONSECUTIVE_SKIPS or scaler.get_scale() < 1:
        raise ValueError(ONLY_OVERFLOWS.format(step, in_a_row, scaler.get_scale()))


def check_weights_finite(model: nn.Module, runtime: Runtime, step: int) -> None:
    """A finite gradient can make weights infinite, and the next step would show it only after they are saved."""
    shards = [getattr(parameter, "to_local", lambda it=parameter: it)() for parameter in model.parameters()]
    finite = torch.stack([torch.isfinite(shard.detach()).all() for shard in shards]).all()
    if runtime.all_reduce_max(int(not finite)):
        raise ValueError(NOT_FINITE_AFTER_STEP.format(step, "weights are"))
