"""The answers of one HTTP request: submitted, waited for, and returned in OpenAI's shape, whole or as events."""

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest

from engine.generate.detokenizer import TextStream, all_content
from engine.reasoning import stream_reasoning
from engine.serve.engine_thread import ServedRequest
from engine.serve.models import LoadedModel
from engine.serve.protocol import (
    AnyRequest,
    APIError,
    ChatCompletionRequest,
    TextOffsets,
    chat_logprobs,
    text_logprobs,
)
from engine.talk.chat_model import Prompt

POLL_SECONDS = 0.25  # between two looks whether the client is still connected


@dataclass(eq=False, kw_only=True)
class Choice(ServedRequest):
    """One answer of a response, and how much of it was sent."""

    index: int
    sent: Counter[str] = field(default_factory=Counter)  # characters of each part
    num_logprobs: int = 0  # tokens whose log-probabilities were sent
    offsets: TextOffsets = field(default_factory=TextOffsets)
    is_finished: bool = False

    def next_delta(self) -> dict[str, str]:
        """Return the text that was not sent yet: {"reasoning_content" or "content": text}."""
        self.is_finished = bool(self.finish_reason)  # read before the text, which is then whole
        parts = dict(zip(("reasoning_content", "content"), self.parts, strict=True))
        delta = {name: part[self.sent[name] :] for name, part in parts.items() if len(part) > self.sent[name]}
        self.sent = Counter({name: len(part) for name, part in parts.items()})
        return delta


class ResponseBuilder:
    """The answers of one HTTP request and their JSON.

    Args:
        params: The body of the HTTP request.
        loaded: The model.
        prompts: The prompts; each has `params.n` answers.
        name: The model's name.
        deadline: Of time.monotonic.
    """

    def __init__(self, params: AnyRequest, loaded: LoadedModel, prompts: list[Prompt], name: str, deadline: float):
        self.params, self.tokenizer = params, loaded.chat_model.tokenizer
        self.is_chat = isinstance(params, ChatCompletionRequest)
        self.changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the client has gone
                loop.call_soon_threadsafe(self.changed.set)

        split = stream_reasoning if self.is_chat else all_content
        seed = secrets.randbits(62) if params.seed is None else params.seed
        self.choices: list[Choice] = []
        for index in range(len(prompts) * params.n):
            choice = Choice(
                prompts[index // params.n].ids,
                params.max_new_tokens or loaded.chat_model.context,
                (loaded.chat_model.end_id,),
                params.sampling(seed + index % params.n),
                text=TextStream(self.tokenizer, params.stop_strings, split),
                top_logprobs=params.num_logprobs,
                engine=loaded.engine,
                notify=notify,
                deadline=deadline,
                index=index,
            )
            self.choices.append(choice)
        chat_object = "chat.completion.chunk" if params.stream else "chat.completion"
        self.head = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": chat_object if self.is_chat else "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        if prompts[0].num_dropped:
            self.head["left_out_messages"] = prompts[0].num_dropped

    async def json_body(self, http: HttpRequest) -> dict:
        """Return the finished response."""
        async for _ in self._steps(http):
            pass
        choices = [self._choice_json(choice, choice.next_delta(), "message") for choice in self.choices]
        return self.head | {"choices": choices, "usage": self._usage()}

    async def events(self, http: HttpRequest) -> AsyncIterator[str]:
        """Yield the response as server-sent events."""
        try:
            if self.is_chat:
                first = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield format_event(self.head | {"choices": [{"index": c.index, **first} for c in self.choices]})
            async for _ in self._steps(http):
                for choice in [choice for choice in self.choices if not choice.is_finished]:
                    delta = choice.next_delta()
                    if delta or choice.is_finished:
                        yield format_event(self.head | {"choices": [self._choice_json(choice, delta, "delta")]})
            if self.params.stream_options and self.params.stream_options.include_usage:
                yield format_event(self.head | {"choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except APIError as error:
            yield format_event(error.body)

    async def _steps(self, http: HttpRequest) -> AsyncIterator[None]:
        """Yield when there may be new text, until all answers are finished; free their slots when the client leaves."""
        next_poll = time.monotonic() + POLL_SECONDS
        try:
            while True:
                finished = all(choice.finish_reason for choice in self.choices)
                if errors := [choice.error for choice in self.choices if choice.error and choice.finish_reason]:
                    raise errors[0]
                yield
                if finished:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), POLL_SECONDS)
                self.changed.clear()
                if time.monotonic() > next_poll:
                    next_poll = time.monotonic() + POLL_SECONDS
                    if await http.is_disconnected():
                        raise APIError(499, "the client has gone")
        finally:
            for choice in self.choices:
                choice.cancel()

    def _usage(self) -> dict[str, int]:
        num_prompt = sum(len(choice.prompt) for choice in self.choices[:: self.params.n])
        num_new = sum(len(choice.ids) for choice in self.choices)
        return {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}

    def _choice_json(self, choice: Choice, delta: dict[str, str], part: str) -> dict:
        """Return a choice in OpenAI's shape; `part` is "message" or "delta"."""
        new = slice(choice.num_logprobs, min(len(choice.ids), len(choice.logprobs)))  # the engine may be adding one
        choice.num_logprobs = new.stop
        ids, logprobs = choice.ids[new], choice.logprobs[new]
        body: dict[str, Any] = {"index": choice.index, "logprobs": None}
        if choice.top_logprobs is not None and self.is_chat:
            body["logprobs"] = chat_logprobs(self.tokenizer, ids, logprobs)
        elif choice.top_logprobs is not None:
            body["logprobs"] = text_logprobs(self.tokenizer, ids, logprobs, choice.offsets)
        if not self.is_chat:
            body["text"] = delta.get("content", "")
        elif part == "message":
            body[part] = {"role": "assistant", "content": "", **delta}
        else:
            body[part] = delta
        return body | {"finish_reason": choice.finish_reason if choice.is_finished else None}


def format_event(content: dict) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
