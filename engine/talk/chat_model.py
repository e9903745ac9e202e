"""Messages -> the ids of a prompt that fits the context -> what a model answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.console import printable, warn
from engine.flags import Flags, flag
from engine.generate.detokenizer import TextStream
from engine.generate.engine import GenerationEngine, Request
from engine.generate.fast_decoder import Decoder
from engine.generate.sampling import Sampling
from engine.machine.runtime import resolve_dtype
from engine.options import DTYPES
from engine.tokenizer import EOS
from model import SpongeBob

MAX_BATCH_SIZE = 16  # more would not be faster on a CPU, and each takes a row of the cache


class Prompt(NamedTuple):
    """The ids that a model is to continue."""

    ids: list[int]
    num_dropped: int = 0  # oldest messages, for which the context had no room


@dataclass(frozen=True)
class Answers(Flags):
    """answers"""

    max_new_tokens: int = flag(512, "longest answer in tokens", gt=0)


@dataclass(frozen=True)
class Quantization(Flags):
    """weights"""

    weight_dtype: str = flag(
        "auto",
        "dtype of the weights while answering; auto: int8 on a CPU, half precision on CUDA",
        choices=("auto", *DTYPES, "int8"),
    )
    compile: bool = flag(False, "answer up to twice as fast on a CPU; the first start takes half a minute more")

    def make_decoder(self, model: SpongeBob, device: torch.device) -> Decoder:
        """Return the decoder that answers with a model."""
        weight_dtype = self.resolve(device)
        if not self.compile:
            return Decoder.from_model(model, weight_dtype, device)
        if device.type != "cpu":
            raise ValueError(f"--compile is for answers on a CPU; on {device.type} leave it out")
        from engine.generate.compiled_decoder import CompiledDecoder  # importing it takes a second

        warn("--compile: half a minute the first time, then seconds ...")
        return CompiledDecoder.from_model(model, weight_dtype, device)

    def resolve(self, device: torch.device) -> str:
        """Return the weight dtype on a device: "int8" or the name of a torch dtype."""
        if self.weight_dtype == "int8" and device.type != "cpu":
            raise ValueError(f"--weight_dtype int8 is for the CPU; on {device.type} leave it out, or name a dtype")
        if self.weight_dtype == "int8" or (self.weight_dtype == "auto" and device.type == "cpu"):
            return "int8"
        return str(resolve_dtype(self.weight_dtype, device)).removeprefix("torch.")


class ChatModel(NamedTuple):
    """A model that is ready to answer, and how it answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    chats: bool  # with roles; otherwise it continues a text
    system: str | None  # None: the one used in training; "": none
    max_new_tokens: int
    sampling: Sampling = Sampling()

    @property
    def context(self) -> int:
        """Context length in tokens, question and answer together."""
        return self.decoder.model.config.max_seq_len

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.token_to_id(EOS)  # pyright: ignore[reportReturnType] (load_tokenizer has looked)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text to continue."""
        return PretrainDataset(self.tokenizer).encode([as_text(text)])[0].ids[:-1].tolist()

    def encode_messages(self, messages: list[dict]) -> list[int]:
        """Return the ids of a chat whose next message is the assistant's."""
        return SFTDataset(self.tokenizer).prompt(messages)

    def build_messages(self, history: Iterable[tuple[str, str]], question: str | None = None) -> list[dict]:
        """Return the messages of a chat: system message, question-answer pairs, and the next question."""
        turns = [] if self.system is None else [("system", as_text(self.system))]
        for user, assistant in history:
            turns += [("user", user), ("assistant", assistant)]
        if question is not None:
            turns.append(("user", as_text(question)))
        return [{"role": role, "content": content} for role, content in turns]

    def make_prompt(self, question: str, history: Iterable[tuple[str, str]] = ()) -> Prompt:
        """Return the prompt of a question; of a chat, the oldest pairs are dropped until there is room.

        Raises:
            ValueError: The question alone fills the context.
        """
        if self.chats:
            prompt = self.fit_messages(self.build_messages(history, question), self.max_new_tokens)
        else:
            prompt = Prompt(self.encode_text(question))
        if len(prompt.ids) >= self.context:
            raise ValueError(
                f"the question takes {len(prompt.ids)} tokens of a context of {self.context}, which leaves no room for "
                "an answer: shorten it, or raise --max_seq_len"
            )
        return prompt

    def fit_messages(self, messages: list[dict], max_new_tokens: int) -> Prompt:
        """Drop the oldest turns until the context has room for the answer, or for a quarter of its own length.

        The system message and the last turn stay, whatever they take.
        """
        limit = self.context - min(max_new_tokens, self.context // 4)
        remaining = messages
        while len(ids := self.encode_messages(remaining)) > limit and (shorter := drop_oldest_turn(remaining)):
            remaining = shorter
        return Prompt(ids, len(messages) - len(remaining))

    def make_request(self, ids: list[int], turn: int = 0) -> Request:
        """Return the request of a prompt; every turn of a chat has a random seed of its own."""
        sampling = replace(self.sampling, seed=(self.sampling.seed + turn) % 2**64)
        return Request(ids, self.max_new_tokens, (self.end_id,), sampling, TextStream(self.tokenizer))

    def generate(self, requests: list[Request]) -> Iterator[None]:
        """Answer requests, MAX_BATCH_SIZE at a time; yield after every step."""
        engine = GenerationEngine(self.decoder, min(len(requests), MAX_BATCH_SIZE), self.context)
        for request in requests:
            engine.add(request)
        while engine.busy:
            engine.step()
            yield


def as_text(argument: str) -> str:
    """Return a text whose bytes a shell or a terminal of another encoding has escaped.

    Raises:
        ValueError: They are not UTF-8, which a tokenizer does not accept.
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        raise ValueError(f"the text is not UTF-8 ({printable(str(error))}); pass it in UTF-8") from None


def drop_oldest_turn(messages: list[dict]) -> list[dict]:
    """Return the messages without the oldest turn: all up to the second question. Empty if there is no such question.

    The system message stays.
    """
    first = int(messages[0]["role"] == "system")
    questions = [i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"]
    return [*messages[:first], *messages[questions[0] :]] if questions else []
