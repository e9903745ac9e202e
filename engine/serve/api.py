"""A checkpoint behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health, and a page at /.

A request is read and checked here, answered by the engine's thread (engine_thread.py), and told by reply.py.
"""

import asyncio
import contextlib
import hmac
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engine.serve.engine_thread import EngineThread
from engine.serve.models import LoadedModel, Models
from engine.serve.protocol import ChatCompletionRequest, CompletionRequest, Problem, read
from engine.serve.response import Reply
from engine.talk.chat_model import Prompt


@dataclass
class Limits:
    """What a client may ask of the server."""

    body: int  # bytes
    seconds: float  # from its arrival to the end of its answer


class Api:
    """The routes, and what they share."""

    def __init__(self, models: Models, engine: EngineThread, limits: Limits, key: str | None, page: Callable[[], str]):
        self.models, self.engine, self.limits, self.key, self.page = models, engine, limits, key, page

    def app(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.engine.start()
            yield
            await asyncio.to_thread(self.engine.stop)

        app = FastAPI(lifespan=lifespan, openapi_url=None)  # its pages of documentation load from elsewhere
        app.get("/health")(self.health)
        keyed = APIRouter(dependencies=[Depends(self.check_key)])
        keyed.get("/", response_class=HTMLResponse)(self.chat_page)
        keyed.get("/v1/models")(self.list_models)
        keyed.get("/v1/models/{name}")(self.one_model)
        keyed.post("/v1/chat/completions")(self.create_chat_completion)
        keyed.post("/v1/completions")(self.create_completion)
        app.include_router(keyed)
        app.exception_handler(Problem)(lambda _, problem: JSONResponse(problem.body, problem.status))
        app.exception_handler(HTTPException)(
            lambda _, error: JSONResponse(Problem(error.status_code, error.detail).body, error.status_code)
        )
        return app

    async def check_key(self, http: Request) -> None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        # Headers are read as Latin-1, whatever bytes they hold; a key is typed in UTF-8.
        if self.key is not None and not hmac.compare_digest(given.encode("latin-1"), os.fsencode(self.key)):
            raise Problem(401, "a wrong API key, or none: Authorization: Bearer KEY", code="invalid_api_key")

    async def health(self) -> dict:
        return {"status": "ok", "running": self.engine.running}

    async def chat_page(self) -> str:
        try:
            return await asyncio.to_thread(self.page)
        except (ValueError, OSError) as error:
            raise Problem(404, str(error)) from None

    async def list_models(self) -> dict:
        return {"object": "list", "data": [self.described(name) for name in self.models.paths()]}

    async def one_model(self, name: str) -> dict:
        if name not in self.models.paths():
            raise self.unknown(name)
        return self.described(name)

    def described(self, name: str) -> dict:
        written = int(self.models.paths()[name].stat().st_mtime)
        return {"id": name, "object": "model", "created": written, "owned_by": "selfllm-engine"}

    def unknown(self, name: str) -> Problem:
        there = ", ".join(self.models.paths()) or "none"
        return Problem(404, f"no model {name!r} here, only: {there}", code="model_not_found", param="model")

    async def create_chat_completion(self, http: Request) -> Any:
        return await self.reply(http, ChatCompletionRequest)

    async def create_completion(self, http: Request) -> Any:
        return await self.reply(http, CompletionRequest)

    async def reply(self, http: Request, kind: type[ChatCompletionRequest] | type[CompletionRequest]) -> Any:
        deadline = time.monotonic() + self.limits.seconds
        asked = read(kind, await self.body(http))
        name = asked.model or self.models.default
        served, prompts = await asyncio.to_thread(self.prepare, asked, name)
        reply = Reply(asked, served, prompts, name, deadline)
        reply.submit(self.engine)
        if asked.stream:
            return StreamingResponse(reply.events(http), media_type="text/event-stream")
        return JSONResponse(await reply.whole(http))

    async def body(self, http: Request) -> bytes:
        content = b""
        try:
            async for chunk in http.stream():
                content += chunk
                if len(content) > self.limits.body:
                    raise Problem(413, f"a request may have {self.limits.body} bytes", code="too_large")
        except ClientDisconnect:
            raise Problem(499, "the client has gone") from None
        return content

    def prepare(self, asked: ChatCompletionRequest | CompletionRequest, name: str) -> tuple[LoadedModel, list[Prompt]]:
        """The model and the prompts; in a thread, for both may take a second."""
        try:
            served = self.models.get(name)
        except KeyError:
            raise self.unknown(name) from None
        except (ValueError, OSError) as error:
            raise Problem(500, str(error)) from None
        talk = served.conversation
        if isinstance(asked, CompletionRequest):
            texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
            prompts = [Prompt(talk.continuation(text)) for text in texts]
        elif not talk.chats:
            raise Problem(400, f"{name} continues a text and does not chat: use /v1/completions", param="model")
        else:
            messages, limit = [message.plain for message in asked.messages], asked.max_completion_tokens
            room = (limit or asked.max_tokens or talk.context) if asked.truncation == "auto" else 0
            prompts = [talk.fit(messages, room) if room else Prompt(talk.ids_of(messages))]
        longest = max(len(prompt.ids) for prompt in prompts)
        if longest >= talk.context:
            words = f"the prompt takes {longest} tokens of a context of {talk.context}: no room for an answer"
            field = "messages" if isinstance(asked, ChatCompletionRequest) else "prompt"
            raise Problem(400, words, code="context_length_exceeded", param=field)
        return served, prompts
