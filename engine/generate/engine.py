"""One decoding engine: requests sit down in slots, get a token each at every step, and leave when they are done.

    slots = GenerationEngine(Decoder(model), num_slots=4, max_seq_len=512)
    request = slots.add(Request(prompt_ids, max_new_tokens=64, end_ids=(2,)))
    while slots.busy:
        slots.step()
    request.ids, request.finish_reason

Prompts that join are read packed, one after the other in one row without padding (prefill); the others get their next
token from the cache (decode). A slot is a row of the cache. The rows in use are always the first ones: when a request
leaves, the last one moves into its place.

Shapes: B requests that sit, T tokens of the prompts that join, V vocabulary
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.generate.detokenizer import TextStream
from engine.generate.fast_decoder import Decoder
from engine.generate.kv_cache import KVCache, PackedPrompts
from engine.generate.sampling import Sampling, sample_next_tokens
from model import SpongeBob, compute_dtype

MAX_PREFILL_TOKENS = 4096  # tokens of prompts read in one step (one prompt may be longer): the others wait for them


class TokenLogprob(NamedTuple):
    """Natural logarithms of probabilities, before temperature and all other sampling."""

    logprob: float  # of the token that was sampled
    top_logprobs: list[tuple[int, float]]  # ids and log-probabilities of the most probable tokens


@dataclass(eq=False)
class Request:
    """A prompt, how it is to be answered, and the answer so far."""

    prompt: list[int]
    max_new_tokens: int
    end_ids: tuple[int, ...] = ()  # end the answer and are no part of it
    sampling: Sampling = Sampling()
    text: TextStream | None = None  # the answer as text, which a stop string may end
    top_logprobs: int | None = None  # how many of the likeliest tokens to note with each token's own (None: nothing)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""  # "stop": by itself or by a stop string; "length": cut; "cancelled"
    _cancelled: bool = False

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.sampling.seed)  # on the CPU: the same on every device

    @property
    def written(self) -> str:
        """What may be shown of the answer."""
        return "" if self.text is None else self.text.written

    def cancel(self) -> None:
        """Leave at the next step; any thread may say so."""
        self._cancelled = True

    def uniform(self) -> float:
        """A uniform random number of this request alone."""
        return 0.0 if self.sampling.greedy else torch.rand((), generator=self._generator).item()

    def append_token(self, token: int, logprob: TokenLogprob | None) -> None:
        """Add the next token; end the answer if it was the last."""
        if token in self.end_ids:
            self.end("stop")
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.text is not None:
            self.text.add(token)
        if self.text is not None and self.text.stopped:
            self.end("stop")
        elif len(self.ids) >= self.max_new_tokens:
            self.end("length")

    def end(self, why: str) -> None:
        if self.text is not None:
            self.text.end()
        self.finish_reason = why  # last: another thread that sees it finds the whole text


class GenerationEngine:
    """Room for `count` requests at once, each of `capacity` tokens, prompt and answer together."""

    def __init__(self, decoder: Decoder, num_slots: int, max_seq_len: int):
        model, weight = decoder.model, decoder.model.tok_embeddings.weight
        self.model, self.decoder, self.device = model, decoder, weight.device
        self.num_slots, self.max_seq_len = num_slots, max_seq_len
        self.cache = KVCache(model.config, num_slots, max_seq_len, weight.device, compute_dtype(weight))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the request of each row of the cache that is in use

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> Request:
        """Let a request wait for a slot. Its answer is cut where the capacity ends.

        ValueError: the prompt is empty, or leaves no room for an answer.
        """
        if not request.prompt:
            raise ValueError("a prompt needs at least one token")
        context = min(self.max_seq_len, self.model.config.max_seq_len)
        if len(request.prompt) >= context:
            raise ValueError(
                f"the prompt takes {len(request.prompt)} tokens of a context of {context}, "
                "which leaves no room for an answer"
            )
        request.max_new_tokens = min(request.max_new_tokens, self.max_seq_len - len(request.prompt))
        self.waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One more token for every request that sits, after those that wait have sat down; returns all it concerned."""
        cancelled = self._abort_cancelled()
        older = len(self.running)
        self._admit()  # before anything is computed: where that fails, none of them is lost
        if not self.running:
            return cancelled
        parts = [self._decode(self.running[:older])] if older else []
        parts += [self._prefill(self.running[older:], older)] if older < len(self.running) else []
        # Chosen on the CPU: one wait per step in place of one per question, and the same words on every device.
        logits = (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu()  # (B, V)
        logits[:, self.model.num_known_tokens :] = -torch.inf
        for request, token, logprob in zip(self.running, *self._choose(logits), strict=True):
            request.append_token(token, logprob)
        concerned = [*cancelled, *self.running]
        self._release_finished()
        return concerned

    def _admit(self) -> None:
        """Let as many of the waiting sit down as there are slots for, within MAX_PREFILL_TOKENS tokens."""
        first, tokens = len(self.running), 0
        while self.waiting and len(self.running) < self.num_slots:
            tokens += len(self.waiting[0].prompt)
            if len(self.running) > first and tokens > MAX_PREFILL_TOKENS:
                break
            self.running.append(self.waiting.popleft())

    def _prefill(self, joined: list[Request], first_row: int) -> Tensor:
        """Prefill: the prompts packed in one row (1, T), stored from `first_row` on -> logits (joined, V)."""
        begins = [0, *accumulate(len(request.prompt) for request in joined)]
        ids = [token for request in joined for token in request.prompt]
        rows = [row for row, request in enumerate(joined, first_row) for _ in request.prompt]
        ids, rows = self._send(torch.tensor([ids, rows]))[:, None]  # (1, T) each
        cu_seqlens = self._send(torch.tensor(begins, dtype=torch.int32))
        hidden = self.model.hidden_states(ids, cu_seqlens, cache=PackedPrompts(self.cache, rows))
        return self.model.output(hidden[0, cu_seqlens[1:] - 1]).float()

    def _decode(self, older: list[Request]) -> Tensor:
        """Decode: the newest token of every request that sat before -> logits (older, V)."""
        places = [len(request.prompt) + len(request.ids) - 1 for request in older]
        newest = [request.ids[-1] for request in older]
        self.cache.length = max(places) + 1
        ids, positions = self._send(torch.tensor([newest, places]))
        return self.decoder(ids, positions, self.cache)

    def _send(self, numbers: Tensor) -> Tensor:
        """To the device, which nothing waits for."""
        if self.device.type != "cuda":
            return numbers.to(self.device)
        return numbers.pin_memory().to(self.device, non_blocking=True)

    def _choose(self, logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
        """The next token of every request that sits, and its log-probability where it is wanted."""
        settings, said = [request.sampling for request in self.running], None
        if any(one.has_penalties for one in settings):
            said = torch.zeros_like(logits, dtype=torch.bool)
            for row, request in enumerate(self.running):
                said[row, request.ids] = True
        chances = torch.tensor([[request.uniform()] for request in self.running])
        chosen = sample_next_tokens(logits, settings, chances, said).tolist()
        logprobs: list[TokenLogprob | None] = [None] * len(chosen)
        for row, request in enumerate(self.running):
            if request.top_logprobs is not None:
                nats = logits[row].log_softmax(-1)
                best = nats.topk(request.top_logprobs)
                top_logprobs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                logprobs[row] = TokenLogprob(nats[chosen[row]].item(), top_logprobs)
        return chosen, logprobs

    def _abort_cancelled(self) -> list[Request]:
        cancelled = [request for request in (*self.running, *self.waiting) if request._cancelled]
        for request in cancelled:
            request.end("cancelled")
            if request in self.waiting:
                self.waiting.remove(request)
        self._release_finished()
        return cancelled

    def _release_finished(self) -> None:
        """Free the slots of those that ended; the last one moves into a place that became free."""
        for row in reversed(range(len(self.running))):
            if self.running[row].finish_reason:
                last = self.running.pop()
                if row < len(self.running):
                    self.cache.move(len(self.running), row, len(last.prompt) + len(last.ids))
                    self.running[row] = last


def complete(
    model: SpongeBob,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_id: int | None,
    **sampling: Any,
) -> list[list[int]]:
    """The answers, a list of ids a prompt; `max_new_tokens` is one number or one a prompt, `sampling` as in Sampling.

    An answer ends before `end_id` (None: only at its length). It depends on its prompt and the seed, not on the prompts
    beside it.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    capacity = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    ends = () if end_id is None else (end_id,)
    slots = GenerationEngine(Decoder(model), len(prompts), capacity)
    requests = [
        slots.add(Request(list(prompt), limit, ends, Sampling(**sampling)))
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    while slots.busy:
        slots.step()
    return [request.ids for request in requests]
