"""What a client gets: all answers of one request, waited for and told in OpenAI's shape, whole or as events."""

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as Http

from engine.generate.detokenizer import TextStream
from engine.generate.engine import Request
from engine.reasoning import ReasoningParser
from engine.serve.engine_thread import EngineThread, Full, Job
from engine.serve.models import LoadedModel
from engine.serve.protocol import (
    Asked,
    ChatCompletionRequest,
    CompletionRequest,
    Places,
    Problem,
    chat_logprobs,
    text_logprobs,
)
from engine.talk.chat_model import ChatModel, Prompt

LOOK = 0.25  # seconds between two looks whether the client is still there


@dataclass
class Choice:
    """One answer of a reply, and what of it has been told."""

    index: int
    job: Job
    thoughts: ReasoningParser | None  # of a chat
    seen: int = 0  # characters of it
    told: dict[str, int] = field(default_factory=lambda: {"reasoning_content": 0, "content": 0})
    tokens: int = 0  # whose log-probabilities were told
    places: Places = field(default_factory=Places)
    done: bool = False

    def news(self) -> dict[str, str]:
        """What is new: {"reasoning_content" or "content": text}."""
        request = self.job.request
        ended, written = bool(request.finish_reason), request.written  # in this order: what ended is whole
        if self.thoughts is None:
            new = {"content": written[self.seen :]}
        else:
            self.thoughts.add(written[self.seen :])
            if ended:
                self.thoughts.end()
            whole = {"reasoning_content": self.thoughts.thought, "content": self.thoughts.content}
            new = {name: text[self.told[name] :] for name, text in whole.items()}
            self.told = {name: len(text) for name, text in whole.items()}
        self.seen, self.done = len(written), ended
        return {name: text for name, text in new.items() if text}


class Reply:
    """All choices of one HTTP request: computed, waited for, and told in OpenAI's shape."""

    def __init__(self, asked: Asked, served: LoadedModel, prompts: list[Prompt], name: str, deadline: float):
        self.asked, self.conversation, self.chat = asked, served.conversation, isinstance(asked, ChatCompletionRequest)
        self.left_out = prompts[0].left_out
        loop, self.event = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(self.event.set)

        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        self.choices = []
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(asked.n)):
            request = make_request(asked, self.conversation, prompt.ids, seed + index % asked.n)
            job = Job(request, served.slots, tell, deadline)
            self.choices.append(Choice(index, job, ReasoningParser() if self.chat else None))
        kind = "chat.completion" if self.chat else "text_completion"
        if asked.stream and self.chat:
            kind += ".chunk"
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }
        if self.left_out:
            self.head["left_out_messages"] = self.left_out

    def submit(self, engine: EngineThread) -> None:
        try:
            engine.submit([choice.job for choice in self.choices])
        except Full as error:
            raise Problem(429, str(error), code="queue_full") from None
        except ValueError as error:
            raise Problem(400, str(error), param="n") from None

    async def steps(self, http: Http) -> AsyncIterator[None]:
        """Comes back when there may be news, until all have ended. When the client goes, its slots become free."""
        jobs, look = [choice.job for choice in self.choices], time.monotonic() + LOOK
        try:
            while True:
                ended = all(job.request.finish_reason for job in jobs)
                if failed := next((job.error for job in jobs if job.error and job.request.finish_reason), ""):
                    raise failure(failed)
                yield
                if ended:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.event.wait(), LOOK)
                self.event.clear()
                if time.monotonic() > look:
                    look = time.monotonic() + LOOK
                    if await http.is_disconnected():
                        raise Problem(499, "the client has gone")
        finally:
            for job in jobs:
                job.request.cancel()

    def usage(self) -> dict[str, int]:
        jobs = [choice.job.request for choice in self.choices]
        read_ = sum(len(request.prompt) for request in jobs[:: self.asked.n])
        made = sum(len(request.ids) for request in jobs)
        return {"prompt_tokens": read_, "completion_tokens": made, "total_tokens": read_ + made}

    def shape(self, choice: Choice, new: dict[str, str], part: str) -> dict:
        """A choice as it is told; `part` is "message" or "delta"."""
        request, start = choice.job.request, choice.tokens
        choice.tokens = min(len(request.ids), len(request.logprobs))
        ids, logprobs = request.ids[start : choice.tokens], request.logprobs[start : choice.tokens]
        body: dict[str, Any] = {"index": choice.index, "logprobs": None}
        if not self.chat:
            if request.top_logprobs is not None:
                body["logprobs"] = text_logprobs(self.conversation.tokenizer, ids, logprobs, choice.places)
            return body | {
                "text": new.get("content", ""),
                "finish_reason": request.finish_reason if choice.done else None,
            }
        if request.top_logprobs is not None:
            body["logprobs"] = chat_logprobs(self.conversation.tokenizer, ids, logprobs)
        if part == "message":
            new = {"role": "assistant", "content": new.pop("content", "")} | new
        return body | {part: new, "finish_reason": request.finish_reason if choice.done else None}

    async def whole(self, http: Http) -> dict:
        async for _ in self.steps(http):
            pass
        choices = [self.shape(choice, choice.news(), "message") for choice in self.choices]
        return self.head | {"choices": choices, "usage": self.usage()}

    async def events(self, http: Http) -> AsyncIterator[str]:
        """Server-sent events."""
        try:
            if self.chat:
                roles = [
                    {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    for choice in self.choices
                ]
                yield event(self.head | {"choices": roles})
            async for _ in self.steps(http):
                for choice in [one for one in self.choices if not one.done]:
                    new = choice.news()
                    if new or choice.done:
                        yield event(self.head | {"choices": [self.shape(choice, new, "delta")]})
            if self.asked.stream_options and self.asked.stream_options.include_usage:
                yield event(self.head | {"choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        except Problem as problem:
            yield event(problem.body)


def make_request(asked: Asked, conversation: ChatModel, ids: list[int], seed: int) -> Request:
    """Limits of length: what was asked for, else as long as the context goes."""
    limit = (asked.max_completion_tokens if isinstance(asked, ChatCompletionRequest) else None) or asked.max_tokens
    wanted = asked.top_logprobs or 0 if isinstance(asked, ChatCompletionRequest) and asked.logprobs else None
    if isinstance(asked, CompletionRequest):
        wanted = asked.logprobs
    text = TextStream(conversation.tokenizer, asked.stops)
    limit = limit or conversation.context
    return Request(ids, limit, (conversation.end_id,), asked.sampling(seed), text, top_logprobs=wanted)


def failure(error: str) -> Problem:
    if error == "timeout":
        return Problem(503, "the answer took longer than this server allows", code="timeout")
    return Problem(500, error)


def event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
