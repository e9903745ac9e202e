"""Talking to a checkpoint in a terminal: one question, several at once, or a chat that remembers."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.console import warn
from engine.generate.engine import Request
from engine.reasoning import ReasoningParser
from engine.talk.chat_model import ChatModel
from engine.talk.session import HELP, ChatSession

# What a model that was trained on the bundled sample can answer, by whether it chats or continues a text.
SUGGESTIONS = {
    True: ("你好！", "你是谁？", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？"),
    False: ("贝壳湾", "林小满的家在", "灯塔立在", "红豆汤的做法"),
}
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
BLOCK = '"""'


def chat(conversation: ChatModel, history_cnt: int, stream: bool, on_sample: bool = False) -> None:
    """Ask and answer until the input ends. Ctrl-C stops an answer; what was said of it is remembered."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() then has a history, and what is pasted is one question)
    print(HELP)
    if on_sample:
        print("It was trained on the bundled sample and knows the town of Shell Bay. Try:")
        print("\n".join(f"  {question}" for question in SUGGESTIONS[conversation.chats]))
    chat = ChatSession(conversation, history_cnt)
    while True:
        try:
            question, may_command = read_question()
            if may_command and question.startswith("/"):
                print(chat.command(question))
            elif question:
                answer(chat, question, stream)
        except (EOFError, KeyboardInterrupt):
            print("\nbye")
            return
        except (ValueError, OSError) as error:
            print(error)


def read_question() -> tuple[str, bool]:
    """A line, which may be a command, or all lines between two times three quotation marks, which are a question."""
    question = input("> ").strip()
    if not question.startswith(BLOCK):
        return question, True
    lines = [question.removeprefix(BLOCK)]
    while not lines[-1].rstrip().endswith(BLOCK):
        lines.append(input("... "))
    return "\n".join(lines).rstrip().removesuffix(BLOCK).strip(), False


def answer(chat: ChatSession, question: str, stream: bool) -> None:
    """Answer a question of a chat."""
    conversation, began = chat.conversation, time.perf_counter()
    ids, left_out = conversation.prompt(question, chat.remembered)
    if left_out:
        warn(f"the context of {conversation.context} tokens is full: {left_out // 2} oldest pairs left out")
    request = conversation.request(ids, chat.turns)
    chat.turns += 1
    chat.said.append((question, print_answer(pieces_of(conversation, request), stream)))
    if sys.stdout.isatty():
        speed = len(request.ids) / (time.perf_counter() - began)
        print(f"{DIM}{len(request.ids)} tokens, {speed:.0f} tokens/s{NORMAL}")
    say_if_cut(request)


def answer_once(conversation: ChatModel, questions: Sequence[str], stream: bool) -> None:
    """Answer and end: one question as in the chat, several in one batch."""
    requests = [conversation.request(conversation.prompt(question).ids) for question in questions]
    if len(requests) == 1:
        print_answer(pieces_of(conversation, requests[0]), stream)
        if not requests[0].finish_reason:
            raise KeyboardInterrupt
    else:
        for _ in conversation.answer(requests):
            pass
        for question, request in zip(questions, requests, strict=True):
            print(f"> {question}\n{request.written}")
    for request in requests:
        say_if_cut(request)


def answer_file(conversation: ChatModel, path: Path) -> None:
    """Answer every prompt of a file, a line each, and print {"prompt", "answer", "finish_reason"} lines in its order.

    A line of a file that ends in .jsonl is {"prompt": text}.
    """
    questions = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            questions.append(prompt_in(line, f"{path}:{number}") if path.suffix == ".jsonl" else line.strip())
    requests = []
    for number, question in enumerate(questions, 1):
        try:
            requests.append(conversation.request(conversation.prompt(question).ids))
        except ValueError as error:
            raise ValueError(f"{path}, prompt {number}: {error}") from None
    told = 0
    for _ in conversation.answer(requests):
        while told < len(requests) and requests[told].finish_reason:
            row = {
                "prompt": questions[told],
                "answer": requests[told].written,
                "finish_reason": requests[told].finish_reason,
            }
            print(json.dumps(row, ensure_ascii=False), flush=True)
            told += 1


def prompt_in(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not a JSON line ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f'{place}: expected {{"prompt": text}}')
    return row["prompt"]


def pieces_of(conversation: ChatModel, request: Request) -> Iterator[str]:
    """The text of an answer while it is made."""
    seen = 0
    for _ in conversation.answer([request]):
        yield request.written[seen:]
        seen = len(request.written)


def say_if_cut(request: Request) -> None:
    if request.finish_reason == "length":
        room = len(request.prompt) + len(request.ids)
        warn(f"cut after {len(request.ids)} tokens (--max_new_tokens; with the question {room}, see --max_seq_len)")


def print_answer(pieces: Iterator[str], stream: bool) -> str:
    """Print an answer, piece by piece or when it is whole, and return it. A terminal shows a thought dimmed."""
    said = []

    def kept() -> Iterator[str]:
        for piece in pieces:
            said.append(piece)
            yield piece

    stopped, in_colour = "", sys.stdout.isatty()
    try:
        for words in dim_thought(kept()) if in_colour else kept():
            if stream:
                print(words, end="", flush=True)
    except KeyboardInterrupt:
        stopped = f"{NORMAL if in_colour else ''} (stopped)"
    answer = "".join(said)
    print(("" if stream else answer) + stopped)
    return answer


def dim_thought(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the same text with terminal codes around the thought that an answer begins with."""
    parser, text = ReasoningParser(), ""
    for piece in pieces:
        for character in piece:
            before = parser.state
            parser.add(character)
            text += character
            if parser.state == "thought" != before:
                text = DIM + text
            elif before == "thought" != parser.state:
                text += NORMAL
        if parser.state != "start":  # until then it may or may not begin with a tag
            yield text
            text = ""
    yield text + (NORMAL if parser.state == "thought" else "")
