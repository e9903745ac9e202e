"""The meaning of a JSONL row: token ids and, for every token, the class of its loss.

    {"text": ...}                                 <s>text</s>       every token is trained on
    {"conversations": [{"role", "content"}]}      <s>system\\n...</s>\\n<s>user\\n...</s>\\n<s>assistant\\n...</s>\\n
    {"messages": ...}, ShareGPT's from and value  only the assistant's text and its </s> are trained on
    {"instruction", "input", "output"}            Alpaca's: the same, of one question and its answer

Pretraining reads texts. SFT and distillation read conversations, and texts next to them, to replay what pretraining
told: a text has the ids and classes of pretraining there, and a tag in it is ordinary text.

The class of a token says what predicting *it* is: 0 not trained on, 1 trained on, 2 a token of a tag. The recipes say
what each class weighs. Nothing here imports torch: tokenizing worker processes stay small.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from engine.reasoning import TAG_RE, TAGS, tag_form
from engine.schemas import (
    WITHHELD,
    BadRow,
    DroppedRow,
    EmptyRow,
    is_called_bad,
    is_trained,
    names_of,
    read_chat,
    schemas_of,
    special_tokens_in,
    text_of,
    unread_fields,
)
from engine.tokenizer import BOS, EOS

# Part of the key of every token cache: raise it when rows would be encoded, or stored, differently than before.
ENCODING_VERSION = 9

NO_LOSS = 0
LOSS = 1
TAG = 2

DEFAULT_SYSTEM = "你是 SpongeBob，一个从零开始训练出来的小小语言模型，乐于用简单的话帮助别人。"

# The same rendering for other programs (transformers, llama.cpp); a test compares the two. An empty first system
# message means that there is none. {% generation %} marks what is trained on (trl's assistant_only_loss).
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
    """One encoded document: `ids` (n,) uint16 and `classes` (n,) uint8."""

    ids: np.ndarray
    classes: np.ndarray


def begins_in_text(classes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return which documents, or parts of them, are of a text, (n,) bool: the first prediction of a text is learned.

    A conversation begins with the name of a role, which is not.

    Args:
        classes: The classes of many documents, (tokens,) uint8.
        starts: First token of each document or part, (n,) int64.
    """
    return classes[starts + 1] != NO_LOSS


class PretrainDataset:
    """{"text": "..."}: one document between <s> and </s>, trained on in every token (nothing predicts the <s>)."""

    field = "text"
    valid = '{"text": "Once upon a time ..."}'

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)

    @classmethod
    def read(cls, row: dict, notes: set[str] | None = None) -> str:
        """Return the row's text, and add what is worth a report to `notes`.

        A note is "schema text", "special_token <s>" or "field x", which is not understood.

        Raises:
            BadRow: The row has no text that can be encoded.
        """
        if cls.field not in row:
            raise BadRow(f'no field "{cls.field}"; it has {names_of(row)}')
        text = text_of(row[cls.field], f'"{cls.field}"')
        if notes is not None:
            notes |= {"schema text"} | unread_fields(row, [cls.field]) | special_tokens_in(text)
            verdicts: set[str] = set()
            if is_called_bad(row, verdicts):  # a text is learned whatever such a field says
                notes |= {note.replace("bad_answer", "field") for note in verdicts if note.startswith("bad_answer")}
        return text

    @staticmethod
    def parts(text: str) -> list[str]:
        """Return the documents that a row's text holds: one."""
        return [text]

    def encode(self, texts: list[str]) -> list[Document]:
        """Encode many texts at once: the tokenizer is fastest in batches."""
        documents = []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = np.array([self.bos, *encoding.ids, self.eos], dtype=np.uint16)
            classes = np.full(len(ids), LOSS, dtype=np.uint8)
            classes[0] = NO_LOSS
            documents.append(Document(ids, classes))
        return documents


class BorderedDataset(PretrainDataset):
    """Texts in which <s> and </s> are written between documents: each part is a document of its own.

    Only for files that are known to be so (--split_on_special_tokens); elsewhere they stay ordinary characters.
    """

    _border = re.compile(f"{BOS}|{EOS}")

    @classmethod
    def read(cls, row: dict, notes: set[str] | None = None) -> str:
        """Return the row's text; <s> and </s> in it are not worth a report.

        Raises:
            BadRow: As in PretrainDataset, or (EmptyRow) nothing but <s> and </s>.
        """
        text = super().read(row, notes)
        if notes is not None:
            notes -= special_tokens_in(BOS + EOS)
        if not cls.parts(text):
            raise EmptyRow(f'"{cls.field}" holds only special tokens')
        return text

    @classmethod
    def parts(cls, text: str) -> list[str]:
        """Return the documents between the special tokens."""
        return [part.strip() for part in cls._border.split(text) if part.strip()]


class SFTDataset:
    """{"conversations": [{"role": ..., "content": ...}, ...]}: a chat of which the assistant's text is trained on.

    A row {"text": ...} next to them becomes the document that PretrainDataset makes of it. The classes of a chat are
    set while its turns are encoded, so nothing has to be searched for afterwards:

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
        """Return whether a row is a chat, in any schema of schemas.py: null is as absent as no field at all."""
        return any(row[key] is not None for key in schemas_of(row))

    @classmethod
    def read(cls, row: dict, notes: set[str] | None = None) -> str | list[dict]:
        """Return the row's messages, or its text where it is no chat; `notes` as in `read_messages`.

        Raises:
            BadRow: As in `read_messages` or PretrainDataset.
        """
        if not cls.holds(row) and PretrainDataset.field in row:
            return PretrainDataset.read(row, notes)
        return cls.read_messages(row, notes)

    @classmethod
    def read_messages(cls, row: dict, notes: set[str] | None = None) -> list[dict]:
        """Return the messages of a chat (schemas.read_chat), and add what is worth a report to `notes`.

        As in PretrainDataset, and "tags none", "tags broken", "empty_turn", "bad_answer field" and "number field".

        Raises:
            BadRow: The row is no chat, or nothing in it is trained on (DroppedRow: any more).
        """
        notes = set() if notes is None else notes
        messages = read_chat(row, notes)
        answers = [message["content"] for message in messages if is_trained(message)]
        if not answers and any(note.startswith(WITHHELD) for note in notes):
            raise DroppedRow("no answer is left to learn")
        if not answers:
            raise BadRow("no assistant turn that is trained on, so nothing to learn")
        for message in messages:
            notes |= special_tokens_in(message["content"])
        notes |= {f"tags {form}" for form in map(tag_form, answers) if form != "whole"}
        return messages

    @staticmethod
    def parts(content: str | list[dict]) -> list[str | list[dict]]:
        """Return the documents that a row holds: one."""
        return [content]

    def template_parts(self, messages: list[dict], add_generation_prompt: bool = False) -> list[tuple[str | int, int]]:
        """Render the chat template as [(text to encode or id of a special token, loss class)].

        Header and content are encoded apart, as they are when the model answers: it continues after "assistant\\n" and
        could never produce a token that reaches across. Tags are encoded apart for the same reason, and so that each is
        always spelt with the same tokens, whatever surrounds it.
        """
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
        messages = [message for message in messages if message["role"] != "system" or message["content"].strip()]
        template_parts: list[tuple[str | int, int]] = []
        for message in messages:
            loss_class = LOSS if is_trained(message) else NO_LOSS
            template_parts += [(self.bos, NO_LOSS), (f"{message['role']}\n", NO_LOSS)]
            for text in TAG_RE.split(message["content"]):
                template_parts.append((text, TAG if loss_class and text in TAGS else loss_class))
            template_parts += [(self.eos, loss_class), ("\n", NO_LOSS)]
        if add_generation_prompt:
            template_parts += [(self.bos, NO_LOSS), ("assistant\n", NO_LOSS)]
        return template_parts

    def encode(self, contents: Sequence[str | list[dict]]) -> list[Document]:
        """Encode many conversations and texts at once."""
        rendered = []
        for content in contents:
            if isinstance(content, str):
                rendered.append([(self.bos, NO_LOSS), (content, LOSS), (self.eos, LOSS)])
            else:
                rendered.append(self.template_parts(content))
        return self._encode(rendered)

    def prompt(self, messages: list[dict]) -> list[int]:
        """Return the ids that the model continues to answer `messages`."""
        return self._encode([self.template_parts(messages, add_generation_prompt=True)])[0].ids.tolist()

    def _encode(self, rendered: list[list[tuple[str | int, int]]]) -> list[Document]:
        # Headers and tags come again in every turn: each distinct text is encoded once a batch.
        texts: dict[str, None] = {}
        for template_parts in rendered:
            texts |= {part: None for part, _ in template_parts if isinstance(part, str)}
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids_of = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        documents = []
        for template_parts in rendered:
            ids, classes = [], []
            for part, loss_class in template_parts:
                part_ids = ids_of[part] if isinstance(part, str) else [part]
                ids += part_ids
                classes += [loss_class] * len(part_ids)
            documents.append(Document(np.array(ids, dtype=np.uint16), np.array(classes, dtype=np.uint8)))
        return documents
