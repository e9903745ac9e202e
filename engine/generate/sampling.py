"""Sample the next token of every request from logits, as pure functions.

Shapes: B requests, each with its own settings; V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from engine.flags import Flags, flag

NUM_CANDIDATES = 128  # most probable tokens that are sorted; the whole vocabulary only if these do not suffice


# Beyond these bounds float32 overflows, and one request would stop all others of its batch.
@dataclass(frozen=True)
class Sampling(Flags):
    """sampling"""

    temperature: float = flag(0.7, "divisor of the logits (0: greedy)", ge=0, le=100)
    top_p: float = flag(0.9, "sample from the most probable tokens that sum to this share (1: off)", gt=0, le=1)
    top_k: int = flag(0, "sample from this many most probable tokens (0: off)", ge=0, le=2**31 - 1)
    min_p: float = flag(0.0, "least probability as a share of the largest (0: off)", ge=0, le=1)
    repetition_penalty: float = flag(
        1.0, "divisor of positive logits of tokens already in the answer (1: off)", ge=1e-6, le=1e6
    )
    presence_penalty: float = flag(
        0.0, "nats subtracted from logits of tokens already in the answer (0: off)", ge=-1e6, le=1e6
    )
    seed: int = flag(42, "random seed of the sampling", ge=0, le=2**64 - 1)

    @property
    def greedy(self) -> bool:
        """True if the most probable token is always taken."""
        return self.temperature < 1e-6 or self.top_k == 1  # logits divided by less would overflow

    @property
    def has_penalties(self) -> bool:
        """True if tokens of the answer are penalized."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0


def apply_penalties(logits: Tensor, generated_mask: Tensor, repetition: Tensor, presence: Tensor) -> Tensor:
    """Make tokens that the answer already holds less likely.

    The prompt does not count: it holds the end token that the answer needs.

    Args:
        logits: Logits, (B, V) float32.
        generated_mask: True for the tokens of the answer so far, (B, V) bool.
        repetition: Divides positive logits and multiplies negative ones (arXiv:1909.05858), (B, 1).
        presence: Nats subtracted from the logits, (B, 1).

    Returns:
        The penalized logits, (B, V).
    """
    penalized = torch.where(logits > 0, logits / repetition, logits * repetition) - presence
    return torch.where(generated_mask, penalized, logits)


def filtered_probs(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Compute the probabilities to sample from: temperature first, then top_k, top_p and min_p.

    Args:
        logits: Logits, (B, V) float32.
        temperature: Divisor of the logits, above 0, (B, 1).
        top_k: Number of tokens to keep, (B, 1); 0 disables it. Exactly so many are kept: bfloat16 logits are often
            equal, and ties beyond the k-th token are left out.
        top_p: Share of what top_k keeps, (B, 1); 1 disables it. The token that crosses it is kept.
        min_p: Least probability as a share of the largest, (B, 1); 0 disables it.

    Returns:
        Probabilities, (B, V); they sum to 1 in each row.
    """
    probs = (logits / temperature).softmax(-1)
    if not ((top_k > 0) | (top_p < 1) | (min_p > 0)).any():
        return probs
    ordered, ids = top_candidates(probs, top_k, top_p, min_p)
    ranks = torch.arange(ordered.shape[-1], device=logits.device)
    ordered = ordered.masked_fill((ranks >= top_k) & (top_k > 0), 0)
    ordered = torch.where(top_k > 0, ordered / ordered.sum(-1, keepdim=True), ordered)
    ordered = ordered.masked_fill((ordered.cumsum(-1) - ordered > top_p) & (top_p < 1), 0)
    ordered = ordered.masked_fill(ordered < min_p * ordered[:, :1], 0)
    return torch.zeros_like(probs).scatter(-1, ids, ordered / ordered.sum(-1, keepdim=True))


def top_candidates(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the candidates of every row by probability, ties by id.

    Sorting a whole vocabulary takes longer than one step of a small model.

    Args:
        probs: Probabilities, (B, V).
        top_k: As in filtered_probs, (B, 1).
        top_p: As in filtered_probs, (B, 1).
        min_p: As in filtered_probs, (B, 1).

    Returns:
        Probabilities in descending order and their ids, (B, NUM_CANDIDATES) if no row keeps more, else (B, V).
    """
    count = min(NUM_CANDIDATES, probs.shape[-1])
    ids = probs.topk(count, sorted=False).indices.sort(-1).values
    ordered, order = probs.gather(-1, ids).sort(stable=True, dim=-1, descending=True)
    reached = (ordered.sum(-1, keepdim=True) > top_p) | (ordered[:, -1:] < min_p * ordered[:, :1])
    if torch.where(top_k > 0, top_k <= count, reached).all():
        return ordered, ids.gather(-1, order)
    return probs.sort(stable=True, dim=-1, descending=True)


def argmax_tokens(logits: Tensor) -> Tensor:
    """Return the ids (B,) int64 of the largest logits (B, V), or of a NaN.

    On a CPU NumPy takes a sixth of torch's time.
    """
    return torch.from_numpy(logits.detach().numpy().argmax(-1)) if logits.is_cpu else logits.argmax(-1)


def sample_from_probs(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample one id per row by inverting the cumulative distribution, in float64 (float32 on MPS).

    Args:
        probs: Non-negative weights, (B, V); rows need not sum to 1.
        uniforms: One random number in [0, 1) per row, (B, 1).

    Returns:
        Token ids, (B,) int64, each with a weight above 0.
    """
    dtype = torch.float32 if probs.device.type == "mps" else torch.float64  # which MPS does not have
    sums = probs.cumsum(-1, dtype=dtype)
    # Divided by the total, the last sum is exactly 1: the id exists, and its probability is not 0.
    return torch.searchsorted(sums / sums[:, -1:], uniforms.to(dtype), right=True).squeeze(-1)


def sample_next_tokens(
    logits: Tensor, settings: Sequence[Sampling], uniforms: Tensor, generated_mask: Tensor | None = None
) -> Tensor:
    """Choose the next token of every row by the row's own settings.

    Args:
        logits: Logits, (B, V).
        settings: One for each row.
        uniforms: One random number in [0, 1) per row, (B, 1).
        generated_mask: True for the tokens of the answer so far, (B, V) bool; read only where a row has penalties.

    Returns:
        Token ids, (B,) int64.

    Raises:
        ValueError: The largest logit of a row is NaN or infinite.
    """
    logits = logits.float()

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(row, name) for row in settings], device=logits.device)[:, None]

    if generated_mask is not None and any(row.has_penalties for row in settings):
        logits = apply_penalties(logits, generated_mask, column("repetition_penalty"), column("presence_penalty"))
    best = argmax_tokens(logits)
    if not all(map(isfinite, logits.gather(-1, best[:, None]).flatten().tolist())):
        raise ValueError("the model's logits are not finite: its weights are NaN or infinite, or overflow their dtype")
    greedy = [row.greedy for row in settings]
    if all(greedy):
        return best
    temperature = column("temperature").clamp_min(1e-6)
    probs = filtered_probs(logits, temperature, column("top_k"), column("top_p"), column("min_p"))
    return torch.where(torch.tensor(greedy, device=logits.device), best, sample_from_probs(probs, uniforms))
