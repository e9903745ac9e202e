"""Messages and a context -> the ids of a prompt, and what the model answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.console import warn
from engine.flags import Flags, flag
from engine.generate.detokenizer import TextStream
from engine.generate.engine import GenerationEngine, Request
from engine.generate.fast_decoder import Decoder
from engine.generate.sampling import Sampling
from engine.machine.runtime import resolve_dtype
from engine.options import DTYPES
from engine.tokenizer import EOS
from model import SpongeBob

AT_ONCE = 16  # more would not be faster on a CPU, and each takes a row of the cache


class Prompt(NamedTuple):
    """What the model is to continue."""

    ids: list[int]
    left_out: int = 0  # messages, the oldest ones, for which the context had no room


@dataclass(frozen=True)
class Weights(Flags):
    """weights"""

    weight_dtype: str = flag(
        "auto",
        "dtype of the weights while answering; auto: int8 on a CPU, half precision on CUDA",
        choices=("auto", *DTYPES, "int8"),
    )
    compile: bool = flag(False, "answer up to twice as fast on a CPU; the first start takes half a minute more")

    def decoder(self, model: SpongeBob, device: torch.device) -> Decoder:
        """What answers with this model."""
        kind, make = self.on(device), Decoder
        if self.compile:
            if device.type != "cpu":
                raise ValueError(f"--compile is for answers on a CPU; on {device.type} leave it out")
            from engine.generate.compiled_decoder import CompiledDecoder as make  # takes a second

            warn("--compile: half a minute the first time, then seconds ...")
        return make.from_model(model, kind, device)

    def on(self, device: torch.device) -> str:
        """What is meant on this device."""
        if self.weight_dtype == "int8" and device.type != "cpu":
            raise ValueError(f"--weight_dtype int8 is for the CPU; on {device.type} leave it out, or name a dtype")
        if self.weight_dtype == "int8" or (self.weight_dtype == "auto" and device.type == "cpu"):
            return "int8"
        return str(resolve_dtype(self.weight_dtype, device)).removeprefix("torch.")


class ChatModel(NamedTuple):
    """A model that is ready to talk, and how it talks. `chats`: with roles; otherwise it continues a text."""

    decoder: Decoder
    tokenizer: Tokenizer
    chats: bool
    system: str | None
    max_new_tokens: int
    sampling: Sampling = Sampling()

    @property
    def model(self) -> SpongeBob:
        return self.decoder.model

    @property
    def context(self) -> int:
        """Tokens, question and answer together."""
        return self.model.config.max_seq_len

    @property
    def end_id(self) -> int:
        return self.tokenizer.token_to_id(EOS)  # pyright: ignore[reportReturnType] (load_tokenizer has looked)

    def continuation(self, text: str) -> list[int]:
        """The ids of a text that goes on."""
        return PretrainDataset(self.tokenizer).encode([as_text(text)])[0].ids[:-1].tolist()

    def messages(self, question: str, history: Iterable[tuple[str, str]] = ()) -> list[dict]:
        turns = [] if self.system is None else [("system", as_text(self.system))]  # an empty one means none
        for asked, answered in history:
            turns += [("user", asked), ("assistant", answered)]
        turns.append(("user", as_text(question)))
        return [{"role": role, "content": content} for role, content in turns]

    def ids_of(self, messages: list[dict]) -> list[int]:
        return SFTDataset(self.tokenizer).prompt(messages)

    def prompt(self, question: str, history: Iterable[tuple[str, str]] = ()) -> Prompt:
        """Of a chat, the oldest pairs are left out until there is room.

        ValueError: the question alone fills the context.
        """
        if self.chats:
            found = self.fit(self.messages(question, history), self.max_new_tokens)
        else:
            found = Prompt(self.continuation(question))
        if len(found.ids) >= self.context:
            raise ValueError(
                f"the question takes {len(found.ids)} tokens of a context of {self.context}, which leaves no room for "
                "an answer: shorten it, or raise --max_seq_len"
            )
        return found

    def fit(self, messages: list[dict], max_new_tokens: int) -> Prompt:
        """Whole oldest turns are left out until the answer, or a quarter of the context, has room beside the rest.

        The system message and the last turn stay, whatever they take.
        """
        kept, ids = messages, self.ids_of(messages)
        while len(ids) + min(max_new_tokens, self.context // 4) > self.context and (shorter := drop_oldest_turn(kept)):
            kept, ids = shorter, self.ids_of(shorter)
        return Prompt(ids, len(messages) - len(kept))

    def request(self, ids: list[int], turn: int = 0) -> Request:
        """The `turn`th question of a chat has a random seed of its own."""
        sampling = replace(self.sampling, seed=(self.sampling.seed + turn) % 2**64)
        return Request(ids, self.max_new_tokens, (self.end_id,), sampling, TextStream(self.tokenizer))

    def answer(self, requests: list[Request]) -> Iterator[None]:
        """Let the model answer them, AT_ONCE at a time; comes back after every step."""
        slots = GenerationEngine(self.decoder, min(len(requests), AT_ONCE), self.context)
        for request in requests:
            slots.add(request)
        while slots.busy:
            slots.step()
            yield


def as_text(words: str) -> str:
    """A shell's broken bytes are no text to the tokenizer."""
    return words.encode("utf-8", "replace").decode()


def drop_oldest_turn(messages: list[dict]) -> list[dict]:
    """Without the oldest turn: all up to the next thing a user says; the system message stays. Empty: there is none."""
    first = int(messages[0]["role"] == "system")
    asked = [at for at in range(first, len(messages)) if messages[at]["role"] == "user" and at > first]
    return [*messages[:first], *messages[asked[0] :]] if asked else []
