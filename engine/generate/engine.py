"""Continuous batching: waiting requests are admitted to free slots, and every step adds one token to each running one.

    slots = GenerationEngine(Decoder(model), num_slots=4, max_seq_len=512)
    request = slots.add(Request(prompt_ids, max_new_tokens=64, end_ids=(2,)))
    while slots.busy:
        slots.step()
    request.ids, request.finish_reason

New prompts are packed into one row without padding (prefill). The other requests get their next token from the cache
(decode). A slot is a row of the cache. The rows in use are always the first ones: when a request finishes, the last one
is moved to its slot.

Shapes: B running requests, T tokens of the new prompts, V vocabulary
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

MAX_PREFILL_TOKENS = 4096  # of one step, for running requests wait for it; a single prompt may be longer


class TokenLogprob(NamedTuple):
    """Natural logarithms of probabilities, before temperature and every other part of sampling."""

    logprob: float  # of the token that was sampled
    top_logprobs: list[tuple[int, float]]  # ids and log-probabilities of the most probable tokens


@dataclass(eq=False)
class Request:
    """A prompt, the settings of its answer, and the answer so far."""

    prompt: list[int]
    max_new_tokens: int
    end_ids: tuple[int, ...] = ()  # tokens that end the answer and are no part of it
    sampling: Sampling = Sampling()
    text: TextStream | None = None  # detokenizes the answer, and ends it at a stop string
    top_logprobs: int | None = None  # number of candidates in `logprobs`; None: no logprobs at all
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""  # "stop": an end token or stop string; "length"; "canceled"; "": not finished
    _canceled: bool = False

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.sampling.seed)  # on the CPU: the same for every device

    @property
    def parts(self) -> tuple[str, str]:
        """Return the thought and the content that are final."""
        return ("", "") if self.text is None else self.text.parts

    @property
    def written(self) -> str:
        """Return the content that is final."""
        return self.parts[1]

    def cancel(self) -> None:
        """Finish at the next step. May be called from any thread."""
        self._canceled = True

    def uniform(self) -> float:
        """Draw a uniform random number in [0, 1) from this request's own generator."""
        return 0.0 if self.sampling.greedy else torch.rand((), generator=self._generator).item()

    def append_token(self, token: int, logprob: TokenLogprob | None) -> None:
        """Add the next token, and finish if it is the last one."""
        if token in self.end_ids:
            self.finish("stop")
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.text is not None:
            self.text.add(token)
        if self.text is not None and self.text.stopped:
            self.finish("stop")
        elif len(self.ids) >= self.max_new_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """Complete the text and set the finish reason."""
        if self.text is not None:
            self.text.end()
            if self.text.stopped and reason == "length":
                reason = "stop"  # a longer stop string that began earlier was waited for
        self.finish_reason = reason  # last: another thread that sees it expects the whole text


class GenerationEngine:
    """Slots for concurrent requests.

    Args:
        decoder: Decoder of the model.
        num_slots: Number of requests that run at once.
        max_seq_len: Limit of each request in tokens, prompt and answer together.
    """

    def __init__(self, decoder: Decoder, num_slots: int, max_seq_len: int):
        weight = decoder.model.tok_embeddings.weight
        self.model = decoder.model
        self.decoder = decoder
        self.device = weight.device
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len
        self.cache = KVCache(self.model.config, num_slots, max_seq_len, weight.device, compute_dtype(weight))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # by row of the cache

    @property
    def busy(self) -> bool:
        """Return whether any request is waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> Request:
        """Queue a request. Its answer is limited to the length of a slot.

        Raises:
            ValueError: The prompt is empty or leaves no room for an answer.
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
        """Admit waiting requests, and add one token to every running request.

        Returns:
            The requests that changed.
        Raises:
            ValueError: Logits are not finite.
        """
        canceled = self._abort_canceled()
        num_running = len(self.running)
        self._admit()  # before anything is computed: no request is lost if that fails
        if not self.running:
            return canceled
        logits = []
        if num_running:
            logits.append(self._decode(self.running[:num_running]))
        if num_running < len(self.running):
            logits.append(self._prefill(self.running[num_running:], num_running))
        # Sample on the CPU: one synchronization a step, and the same tokens on every device.
        logits = (torch.cat(logits) if len(logits) > 1 else logits[0]).cpu()  # (B, V)
        logits[:, self.model.num_known_tokens :] = -torch.inf
        for request, token, logprob in zip(self.running, *self._sample(logits), strict=True):
            request.append_token(token, logprob)
        updated = [*canceled, *self.running]
        self._release_finished()
        return updated

    def _admit(self) -> None:
        """Move waiting requests to free slots, up to MAX_PREFILL_TOKENS of prompts."""
        first, tokens = len(self.running), 0
        while self.waiting and len(self.running) < self.num_slots:
            tokens += len(self.waiting[0].prompt)
            if len(self.running) > first and tokens > MAX_PREFILL_TOKENS:
                break
            self.running.append(self.waiting.popleft())

    def _prefill(self, admitted: list[Request], first_row: int) -> Tensor:
        """Compute the prompts, packed into one row (1, T), and store them from `first_row` on -> logits (B', V)."""
        starts = [0, *accumulate(len(request.prompt) for request in admitted)]
        ids, rows = [], []
        for row, request in enumerate(admitted, first_row):
            ids += request.prompt
            rows += [row] * len(request.prompt)
        ids, rows = self._to_device(torch.tensor([ids, rows]))[:, None]  # (1, T) each
        cu_seqlens = self._to_device(torch.tensor(starts, dtype=torch.int32))
        hidden = self.model.hidden_states(ids, cu_seqlens, cache=PackedPrompts(self.cache, rows))
        return self.model.output(hidden[0, cu_seqlens[1:] - 1]).float()

    def _decode(self, requests: list[Request]) -> Tensor:
        """Compute the newest token of requests that were running before -> logits (B', V)."""
        positions = [len(request.prompt) + len(request.ids) - 1 for request in requests]
        newest = [request.ids[-1] for request in requests]
        self.cache.length = max(positions) + 1
        ids, positions = self._to_device(torch.tensor([newest, positions]))
        return self.decoder(ids, positions, self.cache)

    def _to_device(self, numbers: Tensor) -> Tensor:
        """Copy a tensor of any shape to the device, without a synchronization."""
        if self.device.type != "cuda":
            return numbers.to(self.device)
        return numbers.pin_memory().to(self.device, non_blocking=True)

    def _sample(self, logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
        """Sample the next token of every running request from logits (B, V), with its log-probability if requested."""
        settings = [request.sampling for request in self.running]
        generated_mask = None
        if any(sampling.has_penalties for sampling in settings):
            generated_mask = torch.zeros_like(logits, dtype=torch.bool)
            for row, request in enumerate(self.running):
                generated_mask[row, request.ids] = True
        uniforms = torch.tensor([[request.uniform()] for request in self.running])
        tokens = sample_next_tokens(logits, settings, uniforms, generated_mask).tolist()
        return tokens, [_token_logprob(*row) for row in zip(self.running, logits, tokens, strict=True)]

    def _abort_canceled(self) -> list[Request]:
        """Finish the canceled requests and return them."""
        canceled = [request for request in (*self.running, *self.waiting) if request._canceled]
        for request in canceled:
            request.finish("canceled")
            if request in self.waiting:
                self.waiting.remove(request)
        self._release_finished()
        return canceled

    def _release_finished(self) -> None:
        """Free the slots of finished requests; the last running request is moved to a slot that became free."""
        for row in reversed(range(len(self.running))):
            if self.running[row].finish_reason:
                last = self.running.pop()
                if row < len(self.running):
                    self.cache.move(len(self.running), row, len(last.prompt) + len(last.ids))
                    self.running[row] = last


def _token_logprob(request: Request, logits: Tensor, token: int) -> TokenLogprob | None:
    """Return the log-probabilities of a token and of the most probable ones from logits (V,), if requested."""
    if request.top_logprobs is None:
        return None
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(request.top_logprobs)
    return TokenLogprob(logprobs[token].item(), list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def complete(
    model: SpongeBob,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_id: int | None,
    **sampling: Any,
) -> list[list[int]]:
    """Generate answers to several prompts at once.

    An answer depends on its prompt and the seed alone, not on the other prompts.

    Args:
        model: Model that answers.
        prompts: Token ids of each prompt.
        max_new_tokens: Limit of every answer in tokens, or one limit per prompt.
        end_id: Token that ends an answer and is no part of it (None: answers end at their limit).
        sampling: Fields of Sampling.
    Returns:
        Token ids of each answer.
    Raises:
        ValueError: A prompt is empty or too long, a setting is out of range, or logits are not finite.
    """
    if not prompts:
        return []
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    max_seq_len = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    end_ids = () if end_id is None else (end_id,)
    slots = GenerationEngine(Decoder(model), len(prompts), max_seq_len)
    settings = Sampling(**sampling)
    requests = [Request(list(prompt), limit, end_ids, settings) for prompt, limit in zip(prompts, limits, strict=True)]
    for request in requests:
        slots.add(request)
    while slots.busy:
        slots.step()
    return [request.ids for request in requests]
