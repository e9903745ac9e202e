"""Decoding: the KV cache's owner, sampling, streaming, several prompts at once.

Rows of a batch keep their own positions (row b writes its next token at position lengths[b]), so a prompt gives the
same logits alone and beside longer ones. Padding lies behind a prompt's end, where causality hides it, and is
overwritten by the answer.
"""

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engine.generate.kv_cache import KVCache
from engine.generate.sampling import choose
from model import SpongeBob


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
        logits = model.output(hidden)
        logits[:, model.known_tokens :] = -torch.inf
        chosen = choose(logits, said=said, **sampling)
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
