"""Optimizers and learning-rate schedules. A schedule is a pure function of the step: nothing to save."""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from engine.machine.runtime import resolve_dtype
from engine.options import OPTIMIZERS, SCHEDULES, Training


def build(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """Build the optimizers that together update every parameter once.

    adamw: arXiv:1711.05101, betas 0.9 and 0.95 as LLaMA. Matrices decay; norms do not, nor do embeddings: a rare
    token's row gets no gradient in most steps and would only shrink.
    muon: the hidden matrices by Muon, scaled so that their steps are as long as AdamW's and one rate serves both
    (arXiv:2502.16982, equation 4); embeddings and norms by AdamW.

    Args:
        model: Its parameters are updated.
        training: Optimizer, learning rate and weight decay.
    Raises:
        ValueError: No optimizer of that name.
    """
    name, lr = training.optimizer, training.learning_rate
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is not known, expected one of {', '.join(OPTIMIZERS)}")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in parameters if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in parameters if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        groups.insert(0, {"params": matrices, "weight_decay": training.weight_decay})
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    if name == "adamw":
        return [adamw]
    return [Muon(matrices, lr=lr, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"), adamw]


class Muon(torch.optim.Muon):
    """torch.optim.Muon, with the matrices of one shape orthogonalized in one batch and in the device's fast dtype.

    Momentum, nesterov, decay and rate are torch's, and so is the state. Torch's own loop computes in bf16 everywhere,
    which CPUs without bf16 units emulate, and launches some 24 small kernels a matrix.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                if isinstance(parameters[0], DTensor):  # sharded: torch gathers them one by one
                    return super().step()
                update = torch.stack(self._with_momentum(parameters, group["momentum"]))
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"]).unbind()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, update, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _with_momentum(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """Nesterov: the gradients, moved towards their running mean."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, buffers, momentum)


def orthogonalize(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Bring the singular values of each matrix near 1 by Newton-Schulz iteration (kellerjordan.github.io/posts/muon).

    One step takes x to p(G) x with the Gram matrix G = x x^T and p(G) = aI + bG + cG^2.

    Args:
        x: N matrices, (N, m, n).
        coefficients: a, b and c.
        steps: Iterations, at least 1.
    Returns:
        (N, m, n), in the dtype of x.
    """
    a, b, c = coefficients
    shape, dtype = x.shape, x.dtype
    x = x.mT if shape[1] > shape[2] else x  # the smaller Gram matrix
    x = (x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]).to(resolve_dtype("auto", x.device))
    if x.dtype == torch.float32 and shape[1] != shape[2]:
        # Every p(G) is a polynomial in the first G: iterate on m x m matrices and touch the long x once. Half precision
        # has no such choice: the rounding of G grows twelvefold a step, with no x to start from again.
        gram, product = x @ x.mT, None
        for _ in range(steps):
            p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            p.diagonal(dim1=1, dim2=2).add_(a)
            product = p if product is None else p @ product
            gram = p @ gram @ p
        assert product is not None  # at least one step
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if shape[1] > shape[2] else x).to(dtype)


def schedule(name: str, *, max_lr: float, steps: int, warmup: int, decay_share: float = 0.2) -> Callable[[int], float]:
    """Make the schedule: step (0, 1, ... steps - 1) -> learning rate.

    It rises linearly, reaches `max_lr` in step `warmup`, and then:

    cosine: falls to a tenth of it in the last step (arXiv:2005.14165).
    linear: falls to zero, which it would reach one step after the last (arXiv:2502.15938).
    wsd:    stays, and falls linearly to zero over the last `decay_share` of the steps (arXiv:2404.06395).

    Args:
        name: cosine, linear or wsd.
        max_lr: Peak learning rate.
        steps: Steps of the run.
        warmup: Steps of warm-up.
        decay_share: Share of the steps in which wsd falls.
    Raises:
        ValueError: No schedule of that name, or a warm-up that is not shorter than the run.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not known, expected one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < max(steps, 1):
        raise ValueError(f"warmup_iters={warmup} must be at least 0 and less than the {steps} steps of the run")
    decay_start = warmup if name != "wsd" else max(warmup, steps - round(decay_share * steps))

    def lr(step: int) -> float:
        if step < warmup:
            return max_lr * (step + 1) / (warmup + 1)
        if step < decay_start:
            return max_lr
        if name == "cosine":
            progress = (step - decay_start) / max(1, steps - 1 - decay_start)
            return max_lr * (0.55 + 0.45 * math.cos(math.pi * progress))
        return max_lr * (steps - step) / (steps - decay_start)

    return lr


def default_warmup_steps(steps: int, parts: int = 10) -> int:
    """Return one of `parts` equal parts of the steps, at most 100."""
    return min(100, steps // parts)


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
