"""Decoding: the KV cache's owner, sampling, streaming, several prompts at once.

Rows of a batch keep their own positions (row b writes its next token at position lengths[b]), so a prompt gives the
same logits alone and beside longer ones. Padding lies behind a prompt's end, where causality hides it, and is
overwritten by the answer.
"""

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from Config import LLMConfig
from model import SpongeBob


class KVCache:
    """Keys and values of every layer, (L, B, S, K, D), filled position by position."""

    def __init__(self, config: LLMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, rows, capacity, config.n_kv_heads, config.head_dim
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(rows, device=device)[:, None]  # (B, 1)
        self.length = 0  # positions that may be looked at; the caller raises it before each forward pass

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, T, K, D) at `positions` (B, T); return the layer's first `length` as (B, S, K, D)."""
        self.k[layer][self.rows, positions] = k.to(self.k.dtype)
        self.v[layer][self.rows, positions] = v.to(self.v.dtype)
        return self.k[layer][:, : self.length].to(k.dtype), self.v[layer][:, : self.length].to(v.dtype)


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
    """The next ids (B,) from logits (B, V). Temperature 0 is greedy; top_k 0, top_p 1 and penalty 1 are off.

    `said` (B, V) marks the tokens of the answer so far. The penalty (arXiv:1909.05858) makes them less likely whatever
    the sign of their logit; the prompt is not penalised, it holds the end mark that the answer needs.
    """
    logits = logits.float()
    if repetition_penalty != 1.0 and said is not None:
        weakened = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(said, weakened, logits)
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > top_p, 0)  # keeps the token that crosses top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.inference_mode()
def generate(
    model: SpongeBob, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_id: int, **sampling
) -> Iterator[list[int | None]]:
    """Yield, token by token, the next id of every prompt's answer; None for those that are finished.

    An answer ends with `end_id` (not yielded) or after `max_new_tokens`. `sampling` goes to `choose`.
    """
    if not prompts or not all(prompts):
        raise ValueError("a prompt needs at least one token")
    device = model.tok_embeddings.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    cache = KVCache(model.config, len(prompts), longest + max_new_tokens, device, model.tok_embeddings.weight.dtype)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    positions = torch.arange(longest, device=device).expand_as(ids)
    last = lengths - 1
    said = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=device)
    running = [True] * len(prompts)
    for step in range(max_new_tokens):
        cache.length = longest + step
        hidden = model.hidden_states(ids, positions=positions, cache=cache)[cache.rows[:, 0], last]  # (B, C)
        chosen = choose(model.output(hidden), said=said, **sampling)
        said[cache.rows[:, 0], chosen] = True
        answer = chosen.tolist()
        running = [alive and token != end_id for alive, token in zip(running, answer, strict=True)]
        if not any(running):
            return
        yield [token if alive else None for alive, token in zip(running, answer, strict=True)]
        ids, positions, last = chosen[:, None], (lengths + step)[:, None], torch.zeros_like(last)


def complete(model: SpongeBob, prompts: Sequence[Sequence[int]], **options) -> list[list[int]]:
    """The whole answers, a list of ids a prompt."""
    answers: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, **options):
        for answer, token in zip(answers, step, strict=True):
            if token is not None:
                answer.append(token)
    return answers


def stream_text(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Decode token by token. A character that is spread over tokens comes when its last byte is there."""
    stream, ids, sent = DecodeStream(skip_special_tokens=False), [], 0
    for token in tokens:
        ids.append(token)
        if piece := stream.step(tokenizer, token):
            sent += len(piece)
            yield piece
    if tail := tokenizer.decode(ids, skip_special_tokens=False)[sent:]:  # an answer cut inside a character
        yield tail
