"""Logits -> the next tokens: greedy, temperature, top-k, top-p, repetition penalty."""

import torch
from torch import Tensor


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    said: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next ids (B,) from logits (B, V). Temperature 0 or top_k 1 is greedy; top_k 0, top_p 1, penalty 1 are off.

    Exactly top_k tokens are kept: bfloat16 logits are often equal, and equals beyond the k-th are left out.

    `said` (B, V) marks the tokens of the answer so far. The penalty (arXiv:1909.05858) makes them less likely whatever
    the sign of their logit; the prompt is not penalised, it holds the end mark that the answer needs.
    """
    logits = logits.float()
    if not torch.isfinite(logits.amax(-1)).all():
        raise ValueError(
            "the model's logits are not finite: its weights are NaN or infinite, or their dtype is too small"
        )
    if repetition_penalty != 1.0 and said is not None:
        weakened = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(said, weakened, logits)
    if temperature < 1e-6 or top_k == 1:  # logits divided by less would overflow
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        likeliest = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(-1, likeliest.indices, likeliest.values)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > top_p, 0)  # keeps the token that crosses top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
