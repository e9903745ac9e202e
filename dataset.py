"""What one JSONL row means: token ids and, for every token, the class of its loss.

    {"text": ...}                                 <s>text</s>       all of it is learned
    {"conversations": [{"role", "content"}]}      <s>system\\n...</s>\\n<s>user\\n...</s>\\n<s>assistant\\n...</s>\\n
    {"messages": ...}, ShareGPT's from and value  only the assistant's words and its </s> are learned
    {"instruction", "input", "output"}            Alpaca's: the same, of one question and its answer

The class of a token says what kind of thing predicting *it* is: 0 nothing to learn, 1 to be learned, 2 a token of a
tag. What each class costs is said by the recipes. Nothing here imports torch: tokenising worker processes stay small.
"""

import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from engine.reasoning import TAG_RE, TAGS, tag_form
from engine.schemas import (
    ALPACA,
    TURNS,
    BadRow,
    EmptyRow,
    alpaca_turns,
    is_trained,
    names_of,
    read_turns,
    special_tokens_in,
    text_of,
    unread_fields,
)
from engine.tokenizer import BOS, EOS

# Part of the key of every token cache: raise it when rows would be encoded, or lie on disk, differently than before.
ENCODING_VERSION = 3

NO_LOSS, LOSS, TAG = 0, 1, 2

DEFAULT_SYSTEM = "你是 SpongeBob，一个从零开始训练出来的小小语言模型，乐于用简单的话帮助别人。"

# The same rendering for other programs (transformers, llama.cpp); a test compares the two. An empty first system
# message means that there is none. What {% generation %} holds is learned (trl's assistant_only_loss).
CHAT_TEMPLATE = (
    "{% if not messages or messages[0]['role'] != 'system' %}{{ '<s>system\\n"
    + DEFAULT_SYSTEM
    + "</s>\\n' }}{% endif %}{% for message in messages %}{% set said = message['content'] | default('', true) %}"
    "{% if said is not string %}{% set said = said | selectattr('type', 'equalto', 'text') | map(attribute='text') | "
    "join %}{% endif %}{% if message['role'] != 'system' or said | trim %}{{ '<s>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ said + '</s>' }}{% endgeneration %}"
    "{% else %}{{ said + '</s>' }}{% endif %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


class Document(NamedTuple):
    """One row, encoded. `ids` (n,) uint16, `classes` (n,) uint8."""

    ids: np.ndarray
    classes: np.ndarray


class PretrainDataset:
    """{"text": "..."}: one document between <s> and </s>, every token of it learned (nothing predicts the <s>)."""

    field = "text"
    valid = '{"text": "Once upon a time ..."}'

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)

    @classmethod
    def read(cls, row: dict, noted: set[str] | None = None) -> str:
        """The row's content, or BadRow. What is worth a word is put into `noted`: "schema text", "mark <s>"."""
        if cls.field not in row:
            raise BadRow(f'no field "{cls.field}"; it has {names_of(row)}')
        text = text_of(row[cls.field], f'"{cls.field}"')
        if noted is not None:
            noted |= {"schema text"} | unread_fields(row, [cls.field]) | special_tokens_in(text)
        return text

    @staticmethod
    def parts(text: str) -> list[str]:
        """The documents a row's content holds: one."""
        return [text]

    def encode(self, texts: list[str]) -> list[Document]:
        """Many contents at once: the tokenizer is fastest in batches."""
        documents = []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = np.array([self.bos, *encoding.ids, self.eos], dtype=np.uint16)
            classes = np.full(len(ids), LOSS, dtype=np.uint8)
            classes[0] = NO_LOSS
            documents.append(Document(ids, classes))
        return documents


class BorderedDataset(PretrainDataset):
    """Texts in which <s> and </s> are written between documents: each is one of its own, and the marks are no letters.

    For files of which one knows that (pretrain.py --split_on_special_tokens); in what a user types they stay letters.
    """

    _border = re.compile(f"{BOS}|{EOS}")

    @classmethod
    def read(cls, row: dict, noted: set[str] | None = None) -> str:
        text = super().read(row, noted)
        if noted is not None:
            noted -= {f"mark {BOS}", f"mark {EOS}"}
        if not cls.parts(text):
            raise EmptyRow(f'"{cls.field}" holds marks alone')
        return text

    @classmethod
    def parts(cls, text: str) -> list[str]:
        return [part.strip() for part in cls._border.split(text) if part.strip()]


class SFTDataset:
    """{"conversations": [{"role": ..., "content": ...}, ...]}: a chat of which the assistant's words are learned.

    The classes are laid down while the turns are encoded, so there is nothing to search for afterwards:

        <s> user \\n 你 好 </s> \\n <s> assistant \\n <think> 嗯 </think> 好 </s> \\n
         0    0   0  0  0   0    0   0     0      0    2 2 2   1    2 2 2   1    1   0
    """

    field = "conversations"
    valid = '{"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)

    @classmethod
    def holds(cls, row: dict) -> bool:
        """Whether a row is a chat, in whatever schema."""
        return any(name in row for name in (*TURNS, "instruction"))

    @classmethod
    def read(cls, row: dict, noted: set[str] | None = None) -> list[dict]:
        """The row's turns as [{"role", "content"}], or BadRow; a turn that is not to be learned has "learned": False.

        An empty system message stands first where the row says that there is none. `noted`: as in PretrainDataset,
        also "field tool_calls" (not understood), "tags none" and "tags broken".
        """
        noted = set() if noted is None else noted
        name = next((name for name in TURNS if row.get(name) is not None), next((n for n in TURNS if n in row), None))
        if name is not None:
            turns, schema, read = row[name], name, (name, "system")
        elif "instruction" in row:
            turns, schema, read = alpaca_turns(row), "Alpaca", ALPACA
        else:
            raise BadRow(f'no field "{cls.field}", "messages" or "instruction"; it has {names_of(row)}')
        if not isinstance(turns, list):
            raise BadRow(f'"{name}" is {type(turns).__name__}, expected a list')
        if not turns:
            raise EmptyRow(f'"{name}" is empty')
        messages = read_turns(turns, noted)
        noted |= unread_fields(row, read)
        if row.get("system") is not None:
            system = {"role": "system", "content": text_of(row["system"], '"system"', may_be_empty=True)}
            if messages[0]["role"] != "system":
                messages.insert(0, system)
            elif system["content"].strip() and messages[0] != system:
                noted.add("field system")
        answers = [message["content"] for message in messages if is_trained(message)]
        if not answers:
            raise BadRow("no assistant turn that is learned, so nothing to learn")
        noted.add("schema ShareGPT" if any("from" in turn for turn in turns) else f"schema {schema}")
        noted |= set().union(*(special_tokens_in(message["content"]) for message in messages))
        noted |= {f"tags {form}" for form in map(tag_form, answers) if form != "whole"}
        return messages

    @staticmethod
    def parts(messages: list[dict]) -> list[list[dict]]:
        return [messages]

    def template_parts(self, messages: list[dict], add_generation_prompt: bool = False) -> list[tuple[str | int, int]]:
        """The chat template: [(text to encode or one control id, loss class)].

        Header and content are encoded apart, as they are when the model answers: it continues after
        "assistant\\n" and could never produce a token that reaches across. Tags are cut out for the same reason, and
        so that each is always spelt with the same tokens, whatever stands beside it.
        """
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
        messages = [message for message in messages if message["role"] != "system" or message["content"].strip()]
        template_parts: list[tuple[str | int, int]] = []
        for message in messages:
            role, learned = message["role"], LOSS if is_trained(message) else NO_LOSS
            template_parts += [(self.bos, NO_LOSS), (f"{role}\n", NO_LOSS)]
            for text in TAG_RE.split(message["content"]):
                template_parts.append((text, TAG if learned and text in TAGS else learned))
            template_parts += [(self.eos, learned), ("\n", NO_LOSS)]
        if add_generation_prompt:
            template_parts += [(self.bos, NO_LOSS), ("assistant\n", NO_LOSS)]
        return template_parts

    def encode(self, conversations: list[list[dict]]) -> list[Document]:
        """Many conversations at once."""
        return self._encode([self.template_parts(messages) for messages in conversations])

    def prompt(self, messages: list[dict]) -> list[int]:
        """The ids to continue when the assistant is to answer `messages`."""
        return self._encode([self.template_parts(messages, add_generation_prompt=True)])[0].ids.tolist()

    def _encode(self, rendered: list[list[tuple[str | int, int]]]) -> list[Document]:
        # Headers and tags come again in every turn: each distinct text is encoded once a batch.
        texts = list(
            dict.fromkeys(text for template_parts in rendered for text, _ in template_parts if isinstance(text, str))
        )
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids_of = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        documents = []
        for template_parts in rendered:
            ids, classes = [], []
            for piece, loss_class in template_parts:
                tokens = ids_of[piece] if isinstance(piece, str) else [piece]
                ids += tokens
                classes += [loss_class] * len(tokens)
            documents.append(Document(np.array(ids, dtype=np.uint16), np.array(classes, dtype=np.uint8)))
        return documents
