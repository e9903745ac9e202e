"""OpenAI's shapes: requests and their checks, errors, log-probabilities."""

import codecs
import re
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Tokenizer

from engine.flags import flag_names
from engine.generate.engine import TokenLogprob
from engine.generate.sampling import Sampling
from engine.reasoning import format_reasoning
from engine.tokenizer import byte_characters

BYTES = {character: byte for byte, character in byte_characters().items()}
NEUTRAL = {  # values by which a client asks for nothing: of fields that this server does not have, and -1 as "no limit"
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "echo": [False],
    "best_of": [1],
    "frequency_penalty": [0],
    "service_tier": ["auto", "default"],
    "verbosity": ["medium"],
    "reasoning_effort": ["medium"],
    "continuous_usage_stats": [False],
    "add_generation_prompt": [True],
    "max_tokens": [-1],
    "max_completion_tokens": [-1],
    "top_k": [-1],
}
# Fields that change no answer here, whatever they hold: names, notes, dates, caches, how to call tools.
IGNORED = frozenset(
    "user metadata name id chat_id session_id created createdAt created_at timestamp store safety_identifier "
    "prompt_cache_key prompt_cache_retention cache_control parallel_tool_calls".split()
)
TYPE_IN_PATH = re.compile(r"str|list.*|constrained.*")  # pydantic names the type that it tried in an error's path


class APIError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers
        error_type = {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": error_type, "param": param, "code": code}}


class Strict(BaseModel):
    """A body whose unknown fields are refused: a setting that is not obeyed would be a silent one."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, fields: Any) -> Any:
        """Drop fields that are null or neutral, and unknown ones that are empty or change no answer."""
        if not isinstance(fields, dict):
            return fields
        known = {field.alias or name for name, field in cls.model_fields.items()}

        def matters(name: str, field: Any) -> bool:
            if field is None or field in NEUTRAL.get(name, ()):
                return False
            return name in known or not (name in IGNORED or field in ([], {}, ""))

        return {name: field for name, field in fields.items() if matters(name, field)}


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding that hides lengths from eavesdroppers; there is none to switch off


class BaseRequest(Strict):
    """Fields of both endpoints; None: the server's default."""

    model: str = ""
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """Longest answer in tokens; None: up to the end of the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> list[str]:
        """Texts that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or "" in stops:
            raise APIError(400, "stop: at most four texts, none of them empty", param="stop")
        return stops

    def sampling(self, seed: int) -> Sampling:
        """Return the settings of one answer."""
        settings = {name: getattr(self, name) for name in flag_names(Sampling) if getattr(self, name) is not None}
        try:
            return Sampling(**settings | {"seed": seed % 2**63})
        except ValueError as error:
            message = str(error).removeprefix("--")  # clients know no flags
            raise APIError(400, message, param=message.split()[0]) from None


class Part(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.role != "assistant" and self.content in (None, []):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    @property
    def as_row(self) -> dict[str, str]:
        """The message as a row of training holds it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        if self.reasoning_content:
            content = format_reasoning(self.reasoning_content, content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatCompletionRequest(BaseRequest):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] = "disabled"  # auto: the oldest turns may be dropped

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Most probable tokens to list for each token; None: no log-probabilities."""
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionRequest(BaseRequest):
    """The body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    num_logprobs: int | None = Field(None, ge=0, le=20, alias="logprobs")


AnyRequest = ChatCompletionRequest | CompletionRequest


def parse_body(request_type: type[AnyRequest], body: bytes) -> AnyRequest:
    """Parse and check a body.

    Raises:
        APIError: 400, with the first field that is wrong.
    """
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise APIError(400, f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    try:
        return request_type.model_validate_json(text)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        paths = [[str(part) for part in e["loc"] if not TYPE_IN_PATH.fullmatch(str(part))] for e in errors]
        # A field that may be a text or a list is wrong in two ways: the error that is deeper, or in a list, says more.
        same_field = [i for i, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
        deepest = max(same_field, key=lambda i: (len(paths[i]), "str" not in errors[i]["loc"]))
        param = ".".join(paths[deepest]) or None
        message = f"{param or 'body'}: {errors[deepest]['msg'].removeprefix('Value error, ')}"
        if errors[deepest]["type"] == "extra_forbidden":
            message = f"this server has no {param}; leave it out"
        raise APIError(400, message, param=param) from None


def check_content_headers(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not plain JSON.

    A page of another site may send any text to an address of this machine, but JSON only if that address allows it.

    Raises:
        APIError: 415, with what was sent.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise APIError(415, f"the body is compressed (Content-Encoding: {encoding}): send it as it is")
    content_type = EmailMessage()
    content_type["Content-Type"] = headers.get("content-type", "")
    kind, charset = content_type.get_content_type(), content_type.get_content_charset("utf-8")
    if not re.fullmatch(r"application/(.+\+)?json", kind) or "content-type" not in headers:
        raise APIError(415, "the body must be JSON, and say so: Content-Type: application/json")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise APIError(415, f"the body is in {charset}: send JSON in UTF-8")


# ------------------------------------------------------------------------------------------- log-probabilities


def chat_logprobs(tokenizer: Tokenizer, ids: list[int], logprobs: list[TokenLogprob]) -> dict:
    """Return the log-probabilities of a chat's tokens in OpenAI's shape."""

    def entry(token: int, logprob: float) -> dict:
        raw = raw_bytes(tokenizer, token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = []
    for token, record in zip(ids, logprobs, strict=True):
        top = [entry(*candidate) for candidate in record.top_logprobs]
        content.append(entry(token, record.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


class TextOffsets:
    """Count the characters in front of each token of an answer: one character may take several tokens."""

    def __init__(self) -> None:
        self.offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, raw: bytes) -> int:
        """Return the offset of the next token, whose bytes these are."""
        offset = self.offset
        self.offset += len(self._decoder.decode(raw))
        return offset


def text_logprobs(tokenizer: Tokenizer, ids: list[int], logprobs: list[TokenLogprob], offsets: TextOffsets) -> dict:
    """Return the log-probabilities of a text's tokens in OpenAI's shape.

    A part of a character is written as OpenAI does: bytes:\\xe6\\x99.
    """

    def text(token: int) -> str:
        raw = raw_bytes(tokenizer, token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    return {
        "tokens": [text(token) for token in ids],
        "token_logprobs": [record.logprob for record in logprobs],
        "top_logprobs": [{text(token): logprob for token, logprob in record.top_logprobs} for record in logprobs],
        "text_offset": [offsets.advance(raw_bytes(tokenizer, token)) for token in ids],
    }


def raw_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """Return the bytes of a token, which may be a part of a character."""
    text = tokenizer.id_to_token(token) or ""
    return bytes(BYTES[c] for c in text) if all(c in BYTES for c in text) else text.encode()
