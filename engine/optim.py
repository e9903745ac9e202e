"""Optimizers and learning-rate schedules. A schedule is a pure function of the step: nothing to save."""

import math
from collections.abc import Callable

import torch
from torch import nn

OPTIMIZERS = ("adamw",)
SCHEDULES = ("cosine", "linear", "wsd")


def build(model: nn.Module, *, name: str, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every parameter once.

    adamw: arXiv:1711.05101, betas 0.9 and 0.95 as LLaMA. Matrices decay; norms do not, nor do embeddings: a rare
    token's row gets no gradient in most steps and would only shrink.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is not known, expected one of {', '.join(OPTIMIZERS)}")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in parameters if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in parameters if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)]


def schedule(name: str, *, peak: float, steps: int, warmup: int, decay_share: float = 0.2) -> Callable[[int], float]:
    """step (0, 1, ... steps - 1) -> learning rate. Rises linearly, reaches `peak` in step `warmup`, and then:

    cosine: falls to a tenth of the peak in the last step (arXiv:2005.14165).
    linear: falls to zero, which it would reach one step after the last (arXiv:2502.15938).
    wsd:    stays, and falls linearly to zero over the last `decay_share` of the steps (arXiv:2404.06395).
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not known, expected one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < max(steps, 1):
        raise ValueError(f"warmup_iters={warmup} must be at least 0 and less than the {steps} steps of the run")
    decay_start = warmup if name != "wsd" else max(warmup, steps - round(decay_share * steps))

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        if step < decay_start:
            return peak
        if name == "cosine":
            progress = (step - decay_start) / max(1, steps - 1 - decay_start)
            return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
        return peak * (steps - step) / (steps - decay_start)

    return rate


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
