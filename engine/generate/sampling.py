"""Logits -> the next tokens, as pure functions: penalties, a distribution, a draw.

Shapes: B requests, each with its own settings; V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from engine.flags import Flags, flag

FEW = 128  # candidates that are looked at before the whole vocabulary is


# Beyond these bounds float32 overflows, and one request would stop all others of its batch.
@dataclass(frozen=True)
class Sampling(Flags):
    """sampling"""

    temperature: float = flag(0.7, "divides the logits (0: greedy)", ge=0, le=100)
    top_p: float = flag(0.9, "sample from the likeliest tokens with this much in sum (1: off)", gt=0, le=1)
    top_k: int = flag(0, "sample from this many likeliest tokens (0: off)", ge=0, le=2**31 - 1)
    min_p: float = flag(0.0, "leave out tokens less likely than this share of the likeliest (0: off)", ge=0, le=1)
    repetition_penalty: float = flag(1.0, "weakens tokens the answer already holds (1: off)", ge=1e-6, le=1e6)
    presence_penalty: float = flag(
        0.0, "taken from the logits of tokens the answer already holds (0: off)", ge=-1e6, le=1e6
    )
    seed: int = flag(42, "random seed of the sampling", ge=0, le=2**64 - 1)

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-6 or self.top_k == 1  # logits divided by less would overflow

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0


def apply_penalties(logits: Tensor, said: Tensor, repetition: Tensor, presence: Tensor) -> Tensor:
    """Logits (B, V) in which tokens that were `said` (B, V) are less likely; both penalties (B, 1).

    Repetition (arXiv:1909.05858) divides a positive logit and multiplies a negative one, presence is subtracted. What
    was said is the answer so far: the prompt holds the end mark that the answer needs.
    """
    weakened = torch.where(logits > 0, logits / repetition, logits * repetition) - presence
    return torch.where(said, weakened, logits)


def distribution(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Probabilities (B, V) after temperature, then top_k, top_p and min_p, each (B, 1); 0, 1 and 0 switch these off.

    Exactly top_k tokens are kept: bfloat16 logits are often equal, and equals beyond the k-th are left out. top_p
    counts what top_k has kept as the whole, and keeps the token that crosses it.
    """
    probabilities = (logits / temperature).softmax(-1)
    if not ((top_k > 0) | (top_p < 1) | (min_p > 0)).any():
        return probabilities
    ordered, order = likeliest(probabilities, top_k, top_p, min_p)
    ranks = torch.arange(ordered.shape[-1], device=logits.device)
    ordered = ordered.masked_fill((ranks >= top_k) & (top_k > 0), 0)
    ordered = torch.where(top_k > 0, ordered / ordered.sum(-1, keepdim=True), ordered)
    ordered = ordered.masked_fill((ordered.cumsum(-1) - ordered > top_p) & (top_p < 1), 0)
    ordered = ordered.masked_fill(ordered < min_p * ordered[:, :1], 0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def likeliest(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities from the largest down and their ids, (B, FEW) where no row keeps more than that, else (B, V).

    To sort a whole vocabulary takes longer than a small model. Of equals that were found the lower id comes first.
    """
    few = min(FEW, probabilities.shape[-1])
    order = probabilities.topk(few, sorted=False).indices.sort(-1).values
    ordered, places = probabilities.gather(-1, order).sort(stable=True, dim=-1, descending=True)
    reached = (ordered.sum(-1, keepdim=True) > top_p) | (ordered[:, -1:] < min_p * ordered[:, :1])
    if torch.where(top_k > 0, top_k <= few, reached).all():
        return ordered, order.gather(-1, places)
    return probabilities.sort(stable=True, dim=-1, descending=True)


def largest(logits: Tensor) -> Tensor:
    """The ids (B,) of the largest logits (B, V), or of a NaN. On a CPU by NumPy, in a sixth of the time of torch."""
    return torch.from_numpy(logits.detach().numpy().argmax(-1)) if logits.is_cpu else logits.argmax(-1)


def draw(probabilities: Tensor, chances: Tensor) -> Tensor:
    """The ids (B,) at which the summed probabilities (B, V) pass `chances` (B, 1), which are uniform in [0, 1)."""
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64  # which MPS does not have
    sums = probabilities.cumsum(-1, dtype=wide)
    # Divided by the whole, the last sum is 1 exactly: the id exists, and its probability is not 0.
    return torch.searchsorted(sums / sums[:, -1:], chances.to(wide), right=True).squeeze(-1)


def choose(logits: Tensor, settings: Sequence[Sampling], chances: Tensor, said: Tensor | None = None) -> Tensor:
    """The next ids (B,) from logits (B, V), each row by its own settings and chance (B, 1)."""
    logits = logits.float()

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(one, name) for one in settings], device=logits.device)[:, None]

    if said is not None and any(one.has_penalties for one in settings):
        logits = apply_penalties(logits, said, column("repetition_penalty"), column("presence_penalty"))
    best, greedy = largest(logits), [one.greedy for one in settings]
    if not all(map(isfinite, logits.gather(-1, best[:, None]).flatten().tolist())):
        raise ValueError(
            "the model's logits are not finite: its weights are NaN or infinite, or their dtype is too small"
        )
    if all(greedy):
        return best
    likely = distribution(
        logits, column("temperature").clamp_min(1e-6), column("top_k"), column("top_p"), column("min_p")
    )
    return torch.where(torch.tensor(greedy, device=logits.device), best, draw(likely, chances))
