"""The names that published rows have for one thing, and the turns of a conversation under whatever names.

Nothing here knows a tokenizer: what turns become is said in dataset.py.
"""

import json
import re
from collections.abc import Iterable

from engine.reasoning import THINK, format_reasoning

ROLES = ("system", "user", "assistant", "tool")

# The names that published rows have for one thing. A name that stands nowhere here is not understood: where it may hold
# something to learn, that is counted and said, and a bad row under --strict_data.
TURNS = ("conversations", "messages", "conversation")
SPEAKER = ("role", "from", "speaker")
SPEAKERS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "guest"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "ai"),
    "tool": ("tool", "function", "observation"),  # what a program answered; read, never learned
}
WORDS = ("content", "value", "text")
THOUGHT = ("reasoning_content", "thinking", "reasoning")  # of an assistant's turn
LEARNED = ("weight", "train", "training", "trainable", "loss")  # 0 or false: a turn that is read and not learned
ALPACA = ("instruction", "input", "output", "history", "system", *THOUGHT)
# Names of what is only said about a row.
_FREE = (
    "id idx index uid uuid conversation_id message_id hash md5 key name task task_type type kind category categories "
    "class label labels tag tags topic subject domain field source sources dataset subset split origin url link title "
    "author date time timestamp created updated year license version lang language country score scores quality rating "
    "rank reward difficulty level correct answer answers gold ground_truth value expected length num_turns tokens turn "
    "model_name generator meta metadata note notes comment comments info extra file path line"
)
FREE = frozenset(_FREE.split())

# Control marks of our own and of known families. In a text they are letters, and learned as letters.
MARKS = re.compile(
    r"</?s>|<(?:unk|pad|bos|eos|sop|eop)>|<\|\w+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[gMASK\]"
)


class BadRow(ValueError):
    """A row that cannot be trained on; the message says what is wrong with it."""


class EmptyRow(BadRow):
    """A row without words. Nothing is wrong with it, so it is counted apart."""


def text_of(value: object, name: str, *, may_be_empty: bool = False) -> str:
    """`value` as a text that can be encoded, or BadRow that calls it `name`."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {type(value).__name__}, expected a string")
    if not may_be_empty and not value.strip():
        raise EmptyRow(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half a surrogate pair, which is no UTF-8 text") from None
    return value


def one_of(fields: dict, names: Iterable[str], where: str) -> tuple[str | None, object]:
    """Which of several names a thing has here, and its value; (None, None) without one, or with null."""
    found = [name for name in names if fields.get(name) is not None]
    found = [name for name in found if fields[name] != ""] or found[:1]
    if any(fields[name] != fields[found[0]] for name in found):
        raise BadRow(f"{where} has {' and '.join(found)}, and they differ")
    return (found[0], fields[found[0]]) if found else (None, None)


def unread_fields(fields: dict, read: Iterable[str]) -> set[str]:
    """What is noted of the fields that may hold something to learn and are not understood."""
    known = FREE.union(read)
    return {f"field {name}" for name, value in fields.items() if name not in known and value not in (None, "", [], {})}


def special_tokens_in(text: str) -> set[str]:
    """What is noted of the control marks that a text spells."""
    return {f"mark {mark}" for mark in MARKS.findall(text)}


def is_trained(message: dict) -> bool:
    """Whether a turn is the assistant's, and no weight of 0 says that it is only read."""
    return message["role"] == "assistant" and message.get("learned", True)


def names_of(row: dict) -> str:
    """The fields of a row, for a message about it."""
    return ", ".join(json.dumps(name)[:40] for name in list(row)[:6]) or "none"


def alpaca_turns(row: dict) -> list[dict]:
    """{"instruction", "input", "output"}, and "history" [[question, answer], ...] before them."""
    if "output" not in row:
        raise BadRow(f'no field "output" beside "instruction"; it has {names_of(row)}')
    asked = [text_of(row[name], f'"{name}"') for name in ("instruction", "input") if row.get(name) not in (None, "")]
    turns, history = [], row.get("history") or []
    if not isinstance(history, list):
        raise BadRow(f'"history" is {type(history).__name__}, expected a list')
    for earlier in history:
        if isinstance(earlier, list) and len(earlier) == 2:
            turns += [{"role": role, "content": words} for role, words in zip(ROLES[1:], earlier, strict=False)]
        else:
            turns.append(earlier)
    thought = {name: row[name] for name in THOUGHT if name in row}
    answer = {"role": "assistant", "content": row["output"], **thought}
    return [*turns, {"role": "user", "content": "\n".join(asked)}, answer]


def read_turns(turns: list, noted: set[str]) -> list[dict]:
    """Turns under whatever names -> [{"role", "content"}]."""
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {type(turn).__name__}, expected an object")
    speakers = [one_of(turn, SPEAKER, f"turn {number}")[1] for number, turn in enumerate(turns)]
    only_words = {*SPEAKER, *WORDS, *THOUGHT, *LEARNED, "id", "idx", "index", "turn"}
    named = any(speakers) or any(turn.keys() - only_words for turn in turns)
    messages, spoken = [], 0
    for number, (turn, speaker) in enumerate(zip(turns, speakers, strict=True)):
        if speaker:
            name = speaker.strip().lower() if isinstance(speaker, str) else None
            role = next((role for role, names in SPEAKERS.items() if name in names), None)
            if role is None:
                raise BadRow(f"turn {number} has role {speaker!r}, expected one of {', '.join(ROLES)}")
        elif named:  # some published rows name nobody; only then does the position speak
            raise BadRow(f"turn {number} does not say who speaks; it has {names_of(turn)}")
        else:
            role = ROLES[1 + spoken % 2]
        noted |= unread_fields(turn, only_words)
        if message := _message(turn, role, number, noted):
            messages.append(message)
        spoken += role != "system"
    if not messages:
        raise EmptyRow("no turn has words")
    return messages


def _message(turn: dict, role: str, number: int, noted: set[str]) -> dict | None:
    """One turn, with its thought and whether it is learned; None for a system message without words, but the first."""
    where = f"turn {number}"
    key, words = one_of(turn, WORDS, where)
    if key is None:
        key = next((name for name in WORDS if name in turn), None)
        if key is None:
            raise BadRow(f'{where} has no field "content"; it has {names_of(turn)}')
    if isinstance(words, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in words):
        words = "".join(text_of(part.get("text"), f"a part of {where}", may_be_empty=True) for part in words)
    words = text_of(words, f"{key} of {where}", may_be_empty=role == "system")
    if role == "system" and not words.strip():
        return {"role": role, "content": ""} if number == 0 else None
    name, thought = one_of(turn, THOUGHT, where)
    if thought and role == "assistant" and THINK not in words:
        thought = text_of(thought, f"{name} of {where}", may_be_empty=True).strip("\n")
        words = format_reasoning(thought, words.strip("\n")) if thought else words
    elif thought:
        noted.add(f"field {name}")
    message: dict = {"role": role, "content": words}
    for name in LEARNED:
        value = turn.get(name)
        if value is None or (value in (0, False) and role != "assistant") or (value == 1 and role == "assistant"):
            continue
        if value in (0, False):
            message["learned"] = False
        else:
            noted.add(f"field {name}")
    return message
