"""Rows of published data sets -> messages, [{"role", "content"}], by the names that their fields have.

Knows no tokenizer: dataset.py says what messages become. Another chat schema is another entry of SCHEMAS.
"""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from engine.reasoning import THINK, format_reasoning

# The names that published rows have for one thing. A field that is not listed is not understood: where it may hold
# something to learn, that is counted and reported, and under --strict_data it makes the row a bad one.
ROLE_KEYS = ("role", "from", "speaker")
ROLE_ALIASES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "guest"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "ai"),
    "tool": ("tool", "function", "observation"),  # a program's output; read, never trained on
}
CONTENT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # of an assistant's turn
TRAIN_KEYS = ("weight", "train", "training", "trainable", "loss")  # 0 or false: the turn is read, not trained on
TURN_KEYS = {*ROLE_KEYS, *CONTENT_KEYS, *REASONING_KEYS, *TRAIN_KEYS, "id", "idx", "index", "turn"}
COMPLETION_KEYS = ("prompt", "completion", "response", "system")
ALPACA_KEYS = ("instruction", "input", "output", "history", "system", *REASONING_KEYS)
# Where a row or a turn may call its answer bad, and by which words. A 0 says so only in a file of which a field of
# ZERO_KEYS holds nothing but 0 and 1 (jsonl.find_zero_fields); any other number says nothing about the answer.
# A name that ends in such a word is one, too: is_verified, human_rating.
VERDICT_KEYS = frozenset(
    "label labels class tag correct score scores rating quality rank reward rewards accepted passed verdict".split()
)
VERDICT_WORDS = VERDICT_KEYS | frozenset(  # these names may also hold a text, which is not understood
    "ratings grade stars vote votes upvotes thumb thumbs thumbs_up feedback preference preferred chosen verified "
    "approved acceptable desirable valid good helpful".split()
)
CLASS_KEYS = ("label", "labels", "class", "tag")  # these may hold any word, as "physics" or a class "no"
ZERO_KEYS = ("label", "correct", "is_correct")
BAD_WORDS = frozenset(
    "bad false wrong incorrect rejected reject undesirable unacceptable poor failed down thumbs_down "
    "dislike disliked downvote 👎 错 错误 不正确 不好 坏".split()
)
WITHHELD = ("bad_answer", "empty_turn")  # notes on what a row says and training does not learn
METADATA_KEYS = frozenset(  # say something about a row, and hold nothing to learn
    "id idx index uid uuid conversation_id message_id hash md5 key name task task_type type kind category categories "
    "tags topic subject domain field source sources dataset subset split origin url link title author date time "
    "timestamp created updated year license version lang language country difficulty level answer answers gold "
    "ground_truth value expected length num_turns tokens turn model_name generator meta metadata note notes comment "
    "comments info extra file path line".split()
)

# NaN is what pandas writes where a value is missing: it becomes null, and null is as absent as no field at all.
JSON_DECODER = json.JSONDecoder(parse_constant=lambda name: None if name == "NaN" else float(name))

# Special tokens of this project and of known families. In a text they are ordinary characters, and trained on as such.
SPECIAL_TOKEN_RE = re.compile(
    r"</?s>|<(?:unk|pad|bos|eos|sop|eop)>|<\|\w+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[gMASK\]"
)


class BadRow(ValueError):
    """A row that cannot be trained on; the message says what is wrong with it."""


class EmptyRow(BadRow):
    """A row without words. Nothing is wrong with it, so it is counted apart."""


class DroppedRow(BadRow):
    """A chat with nothing left to learn: its answers are called bad, or have no words. It is counted apart."""


# --------------------------------------------------------------------------------------------------- fields


def text_of(value: object, name: str, *, may_be_empty: bool = False) -> str:
    """Return `value` if it is a text that can be encoded.

    Args:
        value: A field of a row.
        name: What the error message calls it.
        may_be_empty: Accept a text of white space alone.
    Raises:
        BadRow: It is no text, or (EmptyRow) an empty one.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is {type_name(value)}, expected a string")
    if not may_be_empty and not value.strip():
        raise EmptyRow(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half a surrogate pair, which is no UTF-8 text") from None
    return value


def type_name(value: object) -> str:
    """Name what a field holds instead of what is expected there."""
    return "null or NaN" if value is None else type(value).__name__


def unquoted(value: object) -> Any:
    """Return the list or object that a string spells, as a table's column keeps it; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            return JSON_DECODER.decode(value)
    return value


def first_present(fields: dict, keys: Iterable[str], where: str) -> tuple[str | None, object]:
    """Return the name that one thing has here, and its value; a value of None where it has none, or null.

    Args:
        fields: A turn.
        keys: The names that the thing may have; one with a text goes before one with "".
        where: What the error message calls the turn.
    Raises:
        BadRow: Two of the names are there, and their values differ.
    """
    present = [key for key in keys if fields.get(key) is not None]
    present = [key for key in present if fields[key] != ""] or present[:1]
    if not present:
        return next((key for key in keys if key in fields), None), None
    if any(fields[key] != fields[present[0]] for key in present):
        raise BadRow(f"{where} has {' and '.join(present)}, and they differ")
    return present[0], fields[present[0]]


def unread_fields(fields: dict, read: Iterable[str]) -> set[str]:
    """Return a note for each field that may hold something to learn and is not understood."""
    unread = fields.keys() - METADATA_KEYS.union(VERDICT_KEYS, read)
    return {
        f"field {key}" for key in unread if fields[key] not in (None, "", [], {}) and not verdict_of(key, fields[key])
    }


def is_called_bad(fields: dict, notes: set[str]) -> bool:
    """Return whether a row or a turn calls its answer bad; note the fields that do, and those that hold a number."""
    verdicts = {name: verdict_of(name, value) for name, value in fields.items()}
    notes |= {f"{verdict} {name}" for name, verdict in verdicts.items() if verdict in ("bad_answer", "number")}
    return "bad_answer" in verdicts.values()


def verdict_of(name: str, value: object) -> str | None:
    """Return what a field says of an answer: "bad_answer", "good", or "number" where that is not plain; None: nothing.


    Several values call it bad if each of them does.
    """
    last_word = _last_word(name)
    if last_word not in VERDICT_WORDS | BAD_WORDS:
        return None
    values = list(value.values()) if isinstance(value, dict) else value
    listed = values if isinstance(values, list) else [values]
    verdicts = {_scalar_verdict(name, last_word, scalar) for scalar in listed}
    if len(verdicts) == 1:
        return verdicts.pop()
    return "number" if verdicts & {"number", "bad_answer"} else None


def _scalar_verdict(name: str, last_word: str, value: object) -> str | None:
    if isinstance(value, bool):
        return "bad_answer" if value == (last_word in BAD_WORDS) else "good"
    if isinstance(value, str) and last_word in {*BAD_WORDS, "chosen", "preferred"}:
        return None  # an answer itself, as in {"chosen": "Right.", "rejected": "Wrong"}
    if isinstance(value, str) and value.strip().lower() in BAD_WORDS.union(
        () if last_word in CLASS_KEYS else ("no", "否")
    ):
        return "bad_answer"
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return "number" if name in VERDICT_KEYS.difference(CLASS_KEYS) and value else None
    return "bad_answer" if number < 0 and "reward" in name.lower() else "number"


@lru_cache(maxsize=4096)
def _last_word(name: str) -> str:
    """Return what decides whether a name is a verdict's: the last word of isCorrect or kto_tag, or the whole name."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").split("_")
    return name.lower() if name.lower() in VERDICT_WORDS | BAD_WORDS else words[-1]


def special_tokens_in(text: str) -> set[str]:
    """Return a note for each special token that a text spells."""
    return {f"special_token {token}" for token in SPECIAL_TOKEN_RE.findall(text)}


def names_of(row: dict) -> str:
    """Name the first fields of a row, for a message about it."""
    return ", ".join(json.dumps(name)[:40] for name in list(row)[:6]) or "none"


# -------------------------------------------------------------------------------------------------- schemas


class Schema(NamedTuple):
    """A form in which published rows hold a chat."""

    name: str  # as the plan prints it
    keys: tuple[str, ...]  # the fields of the row that are read
    turns: Callable[[dict, str], list]  # (row, its field in SCHEMAS) -> turns, under any of the names above
    needs: tuple[str, ...] = ()  # fields without which a row is not of this schema


def listed_turns(row: dict, key: str) -> list:
    """Return the turns that a row holds as a list, or as a JSON string of one.

    Raises:
        BadRow: They are no list, or (EmptyRow) an empty one.
    """
    turns = unquoted(row[key])
    if not isinstance(turns, list):
        raise BadRow(f'"{key}" is {type_name(turns)}, expected a list')
    if not turns:
        raise EmptyRow(f'"{key}" is empty')
    return turns


def alpaca_turns(row: dict, key: str) -> list:
    """Return {"instruction", "input", "output"} as turns, after those of "history": [[question, answer], ...].

    Raises:
        BadRow: A field is missing, or of another type.
    """
    if "output" not in row:
        raise BadRow(f'"{key}" without a field "output"; it has {names_of(row)}')
    present = [name for name in (key, "input") if row.get(name) is not None]
    question = [text_of(row[name], f'"{name}"', may_be_empty=True) for name in present]
    history = unquoted(row.get("history")) or []
    if not isinstance(history, list):
        raise BadRow(f'"history" is {type_name(history)}, expected a list')
    turns = []
    for earlier in history:
        if isinstance(earlier, list) and len(earlier) == 2:
            turns += [{"role": "user", "content": earlier[0]}, {"role": "assistant", "content": earlier[1]}]
        else:
            turns.append(earlier)
    reasoning = {name: row[name] for name in REASONING_KEYS if name in row}
    answer = {"role": "assistant", "content": text_of(row["output"], '"output"', may_be_empty=True), **reasoning}
    asked = "\n".join(text for text in question if text.strip())
    return [*turns, {"role": "user", "content": asked}, answer]


def completion_turns(row: dict, key: str) -> list:
    """Return trl's {"prompt", "completion"} as turns: each side is a text or a list of turns.

    As there, only the completion is trained on: answers in the prompt are read.

    Raises:
        BadRow: A side is neither.
    """
    sides = []
    for name, role in (("prompt", "user"), (key, "assistant")):
        turns = unquoted(row[name])
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and turn.keys() & {*ROLE_KEYS} for turn in turns
        ):
            turns = [
                {"role": role, "content": text_of(row[name], f'"{name}"', may_be_empty=True)}
            ]  # also one that spells a list
        sides.append(turns)
    return [*(turn | {"train": False} for turn in sides[0]), *sides[1]]


# Field of a row -> its schema. A row has the schema of the first field here that it has and that is not null.
SCHEMAS = {key: Schema(key, (key, "system"), listed_turns) for key in ("conversations", "messages", "conversation")}
SCHEMAS["instruction"] = Schema("Alpaca", ALPACA_KEYS, alpaca_turns)
SCHEMAS |= {
    key: Schema(f"prompt/{key}", COMPLETION_KEYS, completion_turns, ("prompt",)) for key in ("completion", "response")
}


def schemas_of(row: dict) -> list[str]:
    """Return the fields of a row that say which schema it has: without one, it is no chat."""
    return [key for key, schema in SCHEMAS.items() if row.keys() >= {key, *schema.needs}]


def is_trained(message: dict) -> bool:
    """Return whether a message is trained on: the assistant's, unless its row says that it is only read."""
    return message["role"] == "assistant" and message.get("train", True)


def read_chat(row: dict, notes: set[str]) -> list[dict]:
    """Return the messages of a row, and add to `notes` its schema and the fields that are not understood.

    A message that is read and not trained on has "train": False. An empty system message comes first where the row
    says that there is none.

    Raises:
        BadRow: The row is in no schema, or not as its schema wants it.
    """
    present = schemas_of(row)
    if not present:
        raise BadRow(f"no field {', '.join(map(json.dumps, SCHEMAS))}; it has {names_of(row)}")
    key = next((key for key in present if row[key] is not None), present[0])
    schema = SCHEMAS[key]
    turns = [unquoted(turn) for turn in schema.turns(row, key)]
    messages = read_turns(turns, notes)
    if is_called_bad(row, notes):
        messages = [message | {"train": False} for message in messages]
    notes |= unread_fields(row, schema.keys)
    notes.add("schema ShareGPT" if any("from" in turn for turn in turns) else f"schema {schema.name}")
    if row.get("system") is not None:
        system = {"role": "system", "content": text_of(row["system"], '"system"', may_be_empty=True)}
        if messages[0]["role"] != "system":
            messages.insert(0, system)
        elif system["content"].strip() and messages[0] != system:
            notes.add("field system")
    return messages


# ---------------------------------------------------------------------------------------------------- turns


def read_turns(turns: list, notes: set[str]) -> list[dict]:
    """Return turns under any names as [{"role", "content"}], and add to `notes` the fields that are not understood.

    A question or an answer without words takes the other with it.

    Raises:
        BadRow: A turn is not understood, or (EmptyRow) none has words, or (DroppedRow) no pair is left.
    """
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {type_name(turn)}, expected an object")
    speakers = [first_present(turn, ROLE_KEYS, f"turn {number}")[1] for number, turn in enumerate(turns)]
    # Some published rows name no speaker at all. Only there does the position decide.
    is_named = any(speakers) or any(turn.keys() - TURN_KEYS for turn in turns)
    messages, position = [], 0
    for number, (turn, speaker) in enumerate(zip(turns, speakers, strict=True)):
        if speaker:
            role = _role_of(speaker, number)
        elif is_named:
            raise BadRow(f"turn {number} does not say who speaks; it has {names_of(turn)}")
        else:
            role = ("user", "assistant")[position % 2]
        position += role != "system"
        notes |= unread_fields(turn, TURN_KEYS)
        if message := _message(turn, role, number, notes):
            messages.append(message)
    if not any(message["content"].strip() for message in messages):
        raise EmptyRow("no turn has words")
    return drop_empty_pairs(messages, notes)


def drop_empty_pairs(messages: list[dict], notes: set[str]) -> list[dict]:
    """Return the messages without the questions and answers of which a turn has no words.

    Raises:
        DroppedRow: Nothing else is there.
    """
    exchanges: list[list[dict]] = [[]]
    for message in messages:
        if message["role"] == "user" and exchanges[-1] and exchanges[-1][-1]["role"] != "user":
            exchanges.append([])
        exchanges[-1].append(message)
    whole = [exchange for exchange in exchanges if all(map(_has_words, exchange))]
    if len(whole) == len(exchanges):
        return messages
    notes.add("empty_turn")
    remaining = list(chain.from_iterable(whole))
    if all(message["role"] == "system" for message in remaining):
        raise DroppedRow("no question with its answer is left")
    return remaining


def _has_words(message: dict) -> bool:
    return message["role"] == "system" or bool(message["content"])


def _role_of(speaker: object, number: int) -> str:
    name = speaker.strip().lower() if isinstance(speaker, str) else None
    for role, aliases in ROLE_ALIASES.items():
        if name in aliases:
            return role
    raise BadRow(f"turn {number} has role {speaker!r}, expected one of {', '.join(ROLE_ALIASES)}")


def _message(turn: dict, role: str, number: int, notes: set[str]) -> dict | None:
    """Return one turn as a message, or None for an empty system message that is not the first turn."""
    content = _content(turn, number)
    if not content.strip():
        return {"role": role, "content": ""} if role != "system" or number == 0 else None
    key, reasoning = first_present(turn, REASONING_KEYS, f"turn {number}")
    if reasoning and role == "assistant" and THINK not in content:
        reasoning = text_of(reasoning, f"{key} of turn {number}", may_be_empty=True).strip("\n")
        if reasoning:
            content = format_reasoning(reasoning, content.strip("\n"))
    elif reasoning:
        notes.add(f"field {key}")
    is_answer = role == "assistant"
    is_only_read = is_answer and is_called_bad(turn, notes)
    for key in TRAIN_KEYS:
        value = turn.get(key)
        if value in (0, False) and is_answer:
            is_only_read = True
        elif value is not None and value != is_answer:
            notes.add(f"field {key}")
    return {"role": role, "content": content} | ({"train": False} if is_only_read else {})


def _content(turn: dict, number: int) -> str:
    """Return the text of a turn; a list of text parts is joined."""
    key, content = first_present(turn, CONTENT_KEYS, f"turn {number}")
    if key is None:
        raise BadRow(f'turn {number} has no field "content"; it has {names_of(turn)}')
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        parts = [text_of(part.get("text"), f"a part of turn {number}", may_be_empty=True) for part in content]
        content = "".join(parts)
    return text_of(content, f"{key} of turn {number}", may_be_empty=True)
