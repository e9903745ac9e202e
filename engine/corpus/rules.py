"""Cleaning, as one table of rules: each has a name, a reason and an example. clean() applies those that are on."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from engine.corpus import boilerplate as lines
from engine.corpus import edits, secrets
from engine.corpus.secrets import masked
from engine.reasoning import TAG_RE
from engine.schemas import DroppedRow, drop_empty_pairs, is_trained

__all__ = ["RULES", "Cleaned", "Content", "Rule", "check_rules", "clean", "masked"]

Content = str | list[dict]  # a text, or the messages of a conversation
EXCERPT_CHARS = 200


class Rule(NamedTuple):
    """One reason to change or to drop a row."""

    name: str
    on: bool | None  # by default; None: always
    help: str
    example: tuple[Content, Content | None]  # before and after; None: the row is dropped
    apply: Callable[[Content], Content | None] | None = None  # None: another step of the recipe does


class Cleaned(NamedTuple):
    """A row after all rules."""

    content: Content | None
    dropped_by: str  # the name of a rule, or ""
    edits: dict[str, tuple[str, str]]  # rule -> the place of its first change, before and after


# -------------------------------------------------------------------------------------- from a text's edit to a rule


def each_text(edit: Callable[[str], str], roles: Collection[str] = ()) -> Callable[[Content], Content | None]:
    """Return a rule that edits a text, or each turn of a conversation.

    A turn without words costs the question its answer, and the answer its question.

    Args:
        edit: Returns a text changed, or as it is.
        roles: Whose turns are edited; all where none is named.
    """

    def apply(content: Content) -> Content | None:
        if isinstance(content, str):
            text = edit(content)
            return text if text == content or text.strip() else None
        messages = []
        for message in content:
            text = message["content"]
            if not roles or message["role"] in roles:
                text = edit(text)
            messages.append(message if text == message["content"] else message | {"content": text})
        return content if messages == content else _without_empty(messages)

    return apply


def prose(edit: Callable[[str], str]) -> Callable[[Content], Content | None]:
    """Return a rule that edits everything but blocks of code."""
    return each_text(edits.outside_code(edit))


def whole(edit: Callable[[str], str]) -> Callable[[Content], Content | None]:
    """Return a rule that drops a row of which `edit` leaves nothing."""
    return lambda content: content if edit(render(content)) else None


def drop_last_question(content: Content) -> Content | None:
    """Remove what follows the last answer of a conversation."""
    if isinstance(content, str) or content[-1]["role"] == "assistant":
        return content
    last = max((number for number, message in enumerate(content) if message["role"] == "assistant"), default=-1)
    messages = content[: last + 1]
    return messages if any(map(is_trained, messages)) else None


def _without_empty(messages: list[dict]) -> list[dict] | None:
    """Return the messages without exchanges that lost their words; None where nothing to learn is left."""
    messages = [
        message if TAG_RE.sub("", message["content"]).strip() else message | {"content": ""} for message in messages
    ]
    try:
        messages = drop_empty_pairs(messages, set())
    except DroppedRow:
        return None
    return messages if any(map(is_trained, messages)) else None


# --------------------------------------------------------------------------------------------------------- the table


def _chat(*texts: str) -> list[dict]:
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


LONG_LINE = "Subscribe to our newsletter and never miss a story about gardens and seeds."

# In the order in which they are applied, again and again until none changes anything.
RULES = (
    Rule(
        "broken_row",
        None,
        "no JSON, or no text and no conversation in it: nothing can be learned",
        ('{"text": 3}', None),
    ),
    Rule("empty_row", None, "no words", ('{"text": " "}', None)),
    Rule(
        "nothing_to_learn",
        None,
        "a conversation of which every answer is empty, or called bad by a field such as label",
        ('{"prompt": "2+2?", "completion": "5", "label": false}', None),
    ),
    Rule(
        "mojibake",
        True,
        "UTF-8 that was read as another encoding is read again; a text of which bytes are lost is dropped",
        ("Un cafÃ© crÃ¨me, sâ€™il vous plaÃ®t", "Un café crème, s’il vous plaît"),
        prose(edits.mend_mojibake),
    ),
    Rule(
        "nfc",
        True,
        "a letter and its accent become one character (Unicode NFC): one spelling, one sequence of tokens",
        ("cafe\u0301", "café"),
        prose(edits.compose),
    ),
    Rule(
        "invisible",
        True,
        "control, zero-width and direction characters are removed, line breaks are line feeds: they cost tokens unseen",
        ("zero\u200bwidth,\ufeff soft\u00adhyphen\r\n", "zerowidth, softhyphen\n"),
        each_text(edits.remove_invisible),
    ),
    Rule(
        "last_question",
        True,
        "what follows the last answer of a conversation is removed: it has no answer",
        (_chat("1+1?", "2", "And 2+2?"), _chat("1+1?", "2")),
        drop_last_question,
    ),
    Rule(
        "api_keys",
        True,
        "API keys, access tokens and private keys are replaced: a model can repeat what it has read",
        ("AWS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "AWS_KEY_ID=[API_KEY]"),
        each_text(secrets.hide_api_keys),
    ),
    Rule(
        "id_numbers",
        True,
        "Chinese ID numbers and payment cards with a right check digit, and US social security numbers, are replaced",
        ("身份证号 11010519491231002X", "身份证号 [ID_NUMBER]"),
        each_text(secrets.hide_id_numbers),
    ),
    Rule(
        "contacts",
        False,
        "e-mail addresses and phone numbers are replaced",
        ("Write to ann@example.org or call 13812345678", "Write to [EMAIL] or call [PHONE]"),
        prose(secrets.hide_contacts),
    ),
    Rule(
        "boilerplate",
        False,
        "lines of more than half of the texts of a source are removed, but no headings and rows of tables",
        ("Tulips bloom in May.\nAll rights reserved.", "Tulips bloom in May."),
    ),
    Rule(
        "repeated_lines",
        False,
        "of equal lines of 75 bytes or more one stays, where four are in a text, or two follow each other",
        (f"{LONG_LINE}\n{LONG_LINE}\nTulips", f"{LONG_LINE}\nTulips"),
        prose(edits.drop_repeated_lines),
    ),
    Rule(
        "refusals",
        False,
        'answers and texts that begin by refusing, or with "as an AI", are removed',
        (_chat("Who won?", "As an AI language model, I cannot watch football."), None),
        each_text(edits.drop_refusal, ("assistant",)),
    ),
    Rule(
        "too_short", False, "fewer than 60 bytes: 20 Chinese characters", ("Home | Next", None), whole(edits.drop_short)
    ),
    Rule(
        "too_many_symbols",
        False,
        "fewer than half of the characters are letters or digits, outside of code and formulas",
        ("+----+----+\n| 12 | 34 |\n+----+----+\n", None),
        whole(edits.drop_symbols),
    ),
    Rule("exact_repeat", True, "the same words as an earlier row, whatever its schema or file", ("你好", None)),
    Rule("near_repeat", True, "almost the same words as a longer row", ("春天来了！柳树绿了！孩子们去放风筝！", None)),
    Rule("held_out_repeat", None, "a row of a file of --against, whole, almost, or as a part", ("你好", None)),
    Rule("too_long", None, "a conversation of which not even the first answer fits", ("…", None)),
)


# -------------------------------------------------------------------------------------------------------- all of them


def check_rules(on: Collection[str]) -> None:
    """Fail before any row is read.

    Raises:
        ValueError: A rule is on that does not exist, or its package is missing.
    """
    if unknown := set(on) - {rule.name for rule in RULES}:
        raise ValueError(f"no rule {', '.join(sorted(unknown))}; there are {', '.join(rule.name for rule in RULES)}")
    if "mojibake" in on:
        edits.load_ftfy()


def clean(content: Content, on: Collection[str], boilerplate: Collection[int] = ()) -> Cleaned:
    """Apply the rules that are on until none changes anything: a clean row stays as it is.

    Args:
        content: A text or messages, as `read` of a dataset class returns them.
        on: Names of rules.
        boilerplate: The lines of its source that are to be removed (boilerplate.LineSample).
    """
    changes: dict[str, tuple[str, str]] = {}
    before_all: Content | None = None
    while content != before_all:
        before_all = content
        for rule in RULES:
            apply = rule.apply
            if rule.name == "boilerplate" and isinstance(content, str):
                apply = prose(lines.remover(boilerplate))
            if apply is None or rule.name not in on:
                continue
            before, after = content, apply(content)
            if after is None:
                return Cleaned(None, rule.name, changes)
            if after != before:
                changes.setdefault(rule.name, _excerpts(render(before), render(after)))
                content = after
    return Cleaned(content, "", changes)


def render(content: Content) -> str:
    """Return all words of a row as one text."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{message['role']}: {message['content']}" for message in content)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return the place of the first difference of two texts: secrets abbreviated, invisible characters escaped."""
    shown_before, shown_after = secrets.abbreviated(before), secrets.abbreviated(after)
    if shown_before == before and shown_after != after:  # a key that only the change has made whole
        shown_before = shown_after
    start, end = 0, min(len(shown_before), len(shown_after))
    while start < end:  # halve: most texts differ late, and a slice is compared at once
        middle = (start + end + 1) // 2
        if shown_before[:middle] == shown_after[:middle]:
            start = middle
        else:
            end = middle - 1
    window = slice(max(0, start - EXCERPT_CHARS // 4), start + EXCERPT_CHARS)
    return _visible(shown_before[window]), _visible(shown_after[window])


def _visible(text: str) -> str:
    return edits.show_invisible(text)[:EXCERPT_CHARS]
