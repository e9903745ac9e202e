"""A checkpoint behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health, and a page at /.

A request is checked here (protocol.py), answered by the engine's thread (engine_thread.py), returned by response.py.
"""

import asyncio
import contextlib
import hmac
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from engine.console import warn
from engine.serve.engine_thread import EngineThread
from engine.serve.hosts import HostGuard
from engine.serve.models import LoadedModel, Models
from engine.serve.protocol import (
    AnyRequest,
    APIError,
    ChatCompletionRequest,
    CompletionRequest,
    check_content_headers,
    parse_body,
)
from engine.serve.response import ResponseBuilder
from engine.talk.chat_model import Prompt

READ = ["GET", "HEAD"]
BEARER = re.compile(r"^bearer[ \t]+", re.IGNORECASE)
ADDRESSES = "GET /, /health, /v1/models, /v1/models/NAME; POST /v1/chat/completions, /v1/completions"


async def refuse_address(http: Request, error: Exception) -> Response:
    """Answer an address, or a method, that there is not, with those that there are."""
    assert isinstance(error, HTTPException)
    if http.method == "OPTIONS" and error.status_code == 405:
        return Response(status_code=204, headers=error.headers)
    what = f"no {http.method} {http.url.path} here" if error.status_code in (404, 405) else error.detail
    return JSONResponse(
        APIError(error.status_code, f"{what}, only: {ADDRESSES}").body, error.status_code, error.headers
    )


@dataclass
class Api:
    """The routes, and the state that they share."""

    models: Models
    engine_thread: EngineThread
    key: str | None  # that clients must send; None: no key
    page: Callable[[bool], str]  # returns the HTML of the page to chat, or of the one that asks for the key
    max_body_bytes: int
    timeout: float  # seconds from the arrival of a request to the end of its answer
    hosts: Sequence[str] | None = None  # names that are answered, and this machine's own; None: all names
    origins: Sequence[str] = ()  # sites whose pages may ask from a browser

    def app(self) -> FastAPI:
        """Return the application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.engine_thread.start()
            yield
            await asyncio.to_thread(self.engine_thread.stop)

        app = FastAPI(lifespan=lifespan, openapi_url=None)  # its documentation pages load scripts from elsewhere
        app.api_route("/health", methods=READ)(self.health)
        app.api_route("/", methods=READ)(self.chat_page)  # which asks for the key: a browser cannot send it unasked
        keyed = APIRouter(dependencies=[Depends(self.check_key)])
        keyed.api_route("/v1/models", methods=READ)(self.list_models)
        keyed.api_route("/v1/models/{name}", methods=READ)(self.retrieve_model)
        keyed.post("/v1/chat/completions")(self.create_chat_completion)
        keyed.post("/v1/completions")(self.create_completion)
        app.include_router(keyed)
        app.exception_handler(APIError)(lambda _, error: JSONResponse(error.body, error.status, error.headers))
        app.exception_handler(HTTPException)(refuse_address)
        if self.hosts is not None:
            app.add_middleware(HostGuard, allowed=self.hosts)
        if self.origins:
            app.add_middleware(CORSMiddleware, allow_origins=self.origins, allow_methods=["*"], allow_headers=["*"])
        return app

    async def check_key(self, http: Request) -> None:
        """Refuse a wrong API key."""
        key = BEARER.sub("", http.headers.get("authorization", ""))
        # Headers are read as Latin-1, whatever bytes they hold; a key is typed in UTF-8.
        if self.key is not None and not hmac.compare_digest(key.encode("latin-1"), os.fsencode(self.key)):
            message = "a wrong API key, or none: Authorization: Bearer KEY"
            raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def health(self) -> dict:
        """Answer without a key, as long as the process lives."""
        return {"status": "ok", "running": self.engine_thread.num_requests}

    async def chat_page(self, http: Request) -> HTMLResponse:
        """Return the page to chat; to a browser without the API key, one that asks for it and has no models."""
        locked = False
        try:
            await self.check_key(http)
        except APIError:
            locked = True
        try:
            return HTMLResponse(await asyncio.to_thread(self.page, locked), 401 if locked else 200)
        except (ValueError, OSError) as error:
            warn(f"error: {error}")
            raise APIError(404, "there is no page for this checkpoint; the server's console says why") from None

    async def list_models(self) -> dict:
        """List the models."""
        return {"object": "list", "data": [self._model_json(*entry) for entry in self.models.listing().items()]}

    async def retrieve_model(self, name: str) -> dict:
        """Describe a model."""
        if (created := self.models.listing().get(name)) is None:
            raise self._unknown_model(name)
        return self._model_json(name, created)

    async def create_chat_completion(self, http: Request) -> Any:
        """Answer a chat."""
        return await self._respond(http, ChatCompletionRequest)

    async def create_completion(self, http: Request) -> Any:
        """Continue a text."""
        return await self._respond(http, CompletionRequest)

    async def read_body(self, http: Request) -> bytes:
        """Return the body, unless it is too large or too slow, or its sender leaves."""
        check_content_headers(http.headers)
        body = b""
        try:
            async with asyncio.timeout(self.timeout):
                async for chunk in http.stream():
                    body += chunk
                    if len(body) > self.max_body_bytes:
                        raise APIError(413, f"a request may have {self.max_body_bytes} bytes", code="too_large")
        except TimeoutError:
            message = f"{len(body)} bytes came within {self.timeout:g} s, and not the rest"
            raise APIError(408, message, code="timeout", headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise APIError(499, "the client has gone") from None
        return body

    def prepare(self, params: AnyRequest, name: str) -> tuple[LoadedModel, list[Prompt]]:
        """Return the model and the prompts. Run it in a thread: both may take a second."""
        try:
            loaded = self.models.get(name)
        except KeyError:
            raise self._unknown_model(name) from None
        except (ValueError, OSError) as error:
            warn(f"error: {error}")  # it may name folders, which are no client's business
            raise APIError(500, f"{name}.pth cannot be used; the server's console says why") from None
        chat_model = loaded.chat_model
        if isinstance(params, CompletionRequest):
            texts = [params.prompt] if isinstance(params.prompt, str) else params.prompt
            prompts = [Prompt(chat_model.encode_text(text)) for text in texts]
        elif not chat_model.chats:
            raise APIError(400, f"{name} continues a text and does not chat: use /v1/completions", param="model")
        else:
            messages = [message.as_row for message in params.messages]
            if params.truncation == "auto":
                prompts = [chat_model.fit_messages(messages, params.max_new_tokens or chat_model.context)]
            else:
                prompts = [Prompt(chat_model.encode_messages(messages))]
        longest = max(len(prompt.ids) for prompt in prompts)
        if longest >= chat_model.context:
            message = f"the prompt takes {longest} tokens of a context of {chat_model.context}: no room for an answer"
            param = "prompt" if isinstance(params, CompletionRequest) else "messages"
            raise APIError(400, message, code="context_length_exceeded", param=param)
        return loaded, prompts

    async def _respond(self, http: Request, request_type: type[AnyRequest]) -> Any:
        deadline = time.monotonic() + self.timeout
        params = parse_body(request_type, await self.read_body(http))
        name = params.model or self.models.default
        loaded, prompts = await asyncio.to_thread(self.prepare, params, name)
        response = ResponseBuilder(params, loaded, prompts, name, deadline)
        self.engine_thread.submit(response.choices)
        if params.stream:
            # Proxies must hand each event on at once: nginx collects them otherwise, and others keep them.
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(response.events(http), headers=headers, media_type="text/event-stream")
        return JSONResponse(await response.json_body(http))

    def _model_json(self, name: str, created: int) -> dict:
        return {"id": name, "object": "model", "created": created, "owned_by": "selfllm-engine"}

    def _unknown_model(self, name: str) -> APIError:
        available = ", ".join(self.models.listing()) or "none"
        return APIError(404, f"no model {name!r} here, only: {available}", code="model_not_found", param="model")
