"""OpenAI's shapes: what may be asked, what an error looks like, how a choice and its log-probabilities are told."""

import codecs
import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Tokenizer

from engine.generate.engine import TokenLogprob
from engine.generate.sampling import Sampling
from engine.reasoning import format_reasoning
from engine.tokenizer import byte_characters

BYTES = {character: byte for byte, character in byte_characters().items()}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
NEUTRAL = {  # fields that this server does not have, with the values by which a client asks for nothing
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "tool_calls": [[]],
    "functions": [[]],
    "logit_bias": [{}],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "echo": [False],
    "suffix": [""],
    "best_of": [1],
    "frequency_penalty": [0],
    "store": [False],
}
KINDS = re.compile(r"str|list.*|constrained.*")  # what pydantic puts into the place of a field of several kinds
T = TypeVar("T", bound=BaseModel)


class Problem(Exception):
    """What a client is told in place of an answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Strict(BaseModel):
    """A field that is not known is refused: a setting that is not obeyed would be a silent one."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _asks_nothing(cls, fields: Any) -> Any:
        """null means as if it were not there, and so does a neutral value."""
        if not isinstance(fields, dict):
            return fields
        return {
            name: value for name, value in fields.items() if value is not None and value not in NEUTRAL.get(name, ())
        }


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against those who guess at the lengths; there is none to switch off


class Asked(Strict):
    """What a chat and a text to go on with have in common; None: the server's own choice."""

    model: str = ""
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
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
    user: Any = None  # it changes no answer
    metadata: Any = None

    @property
    def stops(self) -> list[str]:
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(words) > 4 or "" in words:
            raise Problem(400, "stop: at most four texts, none of them empty", param="stop")
        return words

    def sampling(self, seed: int) -> Sampling:
        chosen = {name: getattr(self, name) for name in SAMPLING if getattr(self, name) is not None}
        try:
            return Sampling(**chosen, seed=seed % 2**63)
        except ValueError as error:
            message = str(error).removeprefix("--")  # a client knows no flags
            raise Problem(400, message, param=message.split()[0]) from None


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    name: Any = None

    @property
    def plain(self) -> dict[str, str]:
        """As a row of training holds it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        if self.reasoning_content:
            content = format_reasoning(self.reasoning_content, content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatCompletionRequest(Asked):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] = "disabled"  # auto: the oldest turns may be left out

    @model_validator(mode="after")
    def _top_logprobs_are_of_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs asks for logprobs: true beside it")
        return self


class CompletionRequest(Asked):
    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)


def read(kind: type[T], body: bytes) -> T:
    """Problem 400 naming the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        paths = [[str(part) for part in one["loc"] if not KINDS.fullmatch(str(part))] for one in wrong]
        # A field that may be a text or a list is wrong in two ways: what was found deeper, or in a list, says more.
        same = [at for at, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
        deepest = max(same, key=lambda at: (len(paths[at]), "str" not in wrong[at]["loc"]))
        param = ".".join(paths[deepest]) or None
        raise Problem(400, f"{param or 'body'}: {wrong[deepest]['msg']}", param=param) from None


# ------------------------------------------------------------------------------------------------ what is told


def chat_logprobs(tokenizer: Tokenizer, ids: list[int], told: list[TokenLogprob]) -> dict:
    def entry(token: int, value: float) -> dict:
        raw = bytes_of(tokenizer, token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}

    content = [
        entry(token, one.logprob) | {"top_logprobs": [entry(*other) for other in one.top_logprobs]}
        for token, one in zip(ids, told, strict=True)
    ]
    return {"content": content, "refusal": None}


class Places:
    """Where the tokens of an answer begin in its text, one after the other: a character may have several tokens."""

    def __init__(self) -> None:
        self.next, self.characters = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, raw: bytes) -> int:
        place = self.next
        self.next += len(self.characters.decode(raw))
        return place


def text_logprobs(tokenizer: Tokenizer, ids: list[int], told: list[TokenLogprob], places: Places) -> dict:
    """A part of a character is spelt as OpenAI does: bytes:\\xe6\\x99."""

    def word(token: int) -> str:
        raw = bytes_of(tokenizer, token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    return {
        "tokens": [word(token) for token in ids],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [{word(token): value for token, value in one.top_logprobs} for one in told],
        "text_offset": [places.of(bytes_of(tokenizer, token)) for token in ids],
    }


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for; it may be a part of a character."""
    word = tokenizer.id_to_token(token) or ""
    return bytes(BYTES[c] for c in word) if all(c in BYTES for c in word) else word.encode()
