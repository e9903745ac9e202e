"""Answer in a terminal: one question, several at once, a file of them, or a chat that remembers."""

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.console import warn
from engine.generate.engine import Request
from engine.reasoning import END_THINK, THINK
from engine.talk.chat_model import ChatModel
from engine.talk.session import HELP, ChatSession

# Questions that a model trained on the bundled sample can answer, by whether it chats or continues a text.
SUGGESTIONS = {
    True: ("你好！", "你是谁？", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？"),
    False: ("贝壳湾", "林小满的家在", "灯塔立在", "红豆汤的做法"),
}
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
MULTILINE_QUOTE = '"""'


def chat(chat_model: ChatModel, history_cnt: int, stream: bool, on_sample: bool = False) -> None:
    """Ask and answer until the input ends. Ctrl-C stops an answer; its beginning is remembered."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() then has a history, and what is pasted is one question)
    print(HELP)
    if on_sample:
        print("It was trained on the bundled sample and knows the town of Shell Bay. Try:")
        print("\n".join(f"  {question}" for question in SUGGESTIONS[chat_model.chats]))
    session = ChatSession(chat_model, history_cnt)
    while True:
        try:
            question, may_be_command = read_question()
            if may_be_command and question.startswith("/"):
                print(session.command(question))
            elif question:
                answer(session, question, stream)
        except (EOFError, KeyboardInterrupt):
            print("\nbye")
            return
        except (ValueError, OSError) as error:
            print(error)


def read_question() -> tuple[str, bool]:
    """Read a line, which may be a command, or a question of several lines between two MULTILINE_QUOTE."""
    question = input("> ").strip()
    if not question.startswith(MULTILINE_QUOTE):
        return question, True
    lines = [question.removeprefix(MULTILINE_QUOTE)]
    while not lines[-1].rstrip().endswith(MULTILINE_QUOTE):
        lines.append(input("... "))
    return "\n".join(lines).rstrip().removesuffix(MULTILINE_QUOTE).strip(), False


def answer(session: ChatSession, question: str, stream: bool) -> None:
    """Answer a question of a chat."""
    chat_model, start = session.chat_model, time.perf_counter()
    prompt = chat_model.make_prompt(question, session.recent_history)
    if prompt.num_dropped:
        warn(f"the context of {chat_model.context} tokens is full: {prompt.num_dropped // 2} oldest pairs left out")
    request = chat_model.make_request(prompt.ids, session.turns)
    session.turns += 1
    print_answer(chat_model, request, stream)
    session.history.append((question, request.written))
    if sys.stdout.isatty():
        speed = len(request.ids) / (time.perf_counter() - start)
        print(f"{DIM}{len(request.ids)} tokens, {speed:.0f} tokens/s{NORMAL}")
    warn_if_cut(request)


def answer_once(chat_model: ChatModel, questions: Sequence[str], stream: bool) -> None:
    """Answer one question as in a chat, or several in one batch."""
    requests = [chat_model.make_request(chat_model.make_prompt(question).ids) for question in questions]
    if len(requests) == 1:
        print_answer(chat_model, requests[0], stream)
        if not requests[0].finish_reason:
            raise KeyboardInterrupt
    else:
        for _ in chat_model.generate(requests):
            pass
        for question, request in zip(questions, requests, strict=True):
            print(f"> {question}\n{request.written}")
    for request in requests:
        warn_if_cut(request)


def answer_file(chat_model: ChatModel, path: Path) -> None:
    """Answer the prompts of a file, a line each, and print {"prompt", "answer", "finish_reason"} lines in its order.

    A line of a file that ends in .jsonl is {"prompt": text}.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    pending: deque[tuple[str, Request]] = deque()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                question = parse_prompt(line) if path.suffix == ".jsonl" else line.strip()
                pending.append((question, chat_model.make_request(chat_model.make_prompt(question).ids)))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    for _ in chat_model.generate([request for _, request in pending]):
        while pending and pending[0][1].finish_reason:
            question, request = pending.popleft()
            row = {"prompt": question, "answer": request.written, "finish_reason": request.finish_reason}
            print(json.dumps(row, ensure_ascii=False), flush=True)


def parse_prompt(line: str) -> str:
    """Return the prompt of a JSON line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON line ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError('expected {"prompt": text}')
    return row["prompt"]


def stream_text(chat_model: ChatModel, request: Request, dim: bool = False) -> Iterator[str]:
    """Yield the text of an answer while it is generated, its thought dimmed or not."""
    length = 0
    for _ in chat_model.generate([request]):
        text = dim_thought(request.written, bool(request.finish_reason)) if dim else request.written
        yield text[length:]
        length = len(text)


def warn_if_cut(request: Request) -> None:
    """Say that an answer was cut, and by which limits."""
    if request.finish_reason == "length":
        total = len(request.prompt) + len(request.ids)
        warn(f"cut after {len(request.ids)} tokens (--max_new_tokens; with the question {total}, see --max_seq_len)")


def print_answer(chat_model: ChatModel, request: Request, stream: bool) -> None:
    """Print an answer, piece by piece or when it is whole. A terminal shows a thought dimmed."""
    is_terminal = sys.stdout.isatty()
    end = ""
    try:
        for piece in stream_text(chat_model, request, is_terminal):
            if stream:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        end = f"{NORMAL if is_terminal else ''} (stopped)"
    print(("" if stream else request.written) + end)


def dim_thought(text: str, is_whole: bool) -> str:
    """Put terminal codes around the thought that a growing answer begins with; a beginning of <think> is held back."""
    start = text.lstrip()
    if THINK.startswith(start) and start != THINK and not is_whole:
        return ""
    if not start.startswith(THINK):
        return text
    thought, closing_tag, content = text.partition(END_THINK)
    return DIM + thought + closing_tag + (NORMAL if closing_tag or is_whole else "") + content
