"""Answer in a terminal: one question, several at once, a file of them, or a chat that remembers."""

import codecs
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.console import escape_controls, warn
from engine.generate.engine import Request
from engine.reasoning import END_THINK, THINK
from engine.talk.chat_model import ChatModel, as_text
from engine.talk.session import HELP, ChatSession

# Questions that a model trained on the bundled sample can answer, by whether it chats or continues a text.
SUGGESTIONS = {
    True: ("你好！", "你是谁？", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？"),
    False: ("贝壳湾", "林小满的家在", "灯塔立在", "红豆汤的做法"),
}
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
MULTILINE_QUOTE = '"""'


def chat(chat_model: ChatModel, history_cnt: int, stream: bool, on_sample: bool = False) -> None:
    """Ask and answer until the input ends.

    Ctrl-C stops an answer, whose beginning is remembered. At the prompt it clears what is typed; a second one ends the
    chat.
    """
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() then has a history, and what is pasted is one question)
    print(HELP)
    if on_sample:
        print("It was trained on the bundled sample and knows the town of Shell Bay. Try:")
        print("\n".join(f"  {question}" for question in SUGGESTIONS[chat_model.chats]))
    session = ChatSession(chat_model, history_cnt)
    was_interrupted = False
    while True:
        try:
            question, may_be_command = read_question()
            was_interrupted = False
            if may_be_command and question.strip().startswith("/"):
                print(session.command(question.strip()))
            elif question.strip():
                answer(session, question, stream)
        except EOFError:
            print("\nbye")
            return
        except KeyboardInterrupt:
            if was_interrupted and not typed_text():
                print("\nbye")
                return
            was_interrupted = True
            print("\n(Ctrl-C again, /exit or Ctrl-D ends)")
        except (ValueError, OSError) as error:
            print(error)


def read_question() -> tuple[str, bool]:
    """Read a line as typed, which may be a command, or a question of several lines.

    MULTILINE_QUOTE begins it. It ends at a line that is MULTILINE_QUOTE alone, at one in the same line, or with the
    input.
    """
    question = input("> ")
    if not question.startswith(MULTILINE_QUOTE):
        return question, True
    text = question.removeprefix(MULTILINE_QUOTE)
    if text.rstrip().endswith(MULTILINE_QUOTE):
        return text.rstrip().removesuffix(MULTILINE_QUOTE), False
    lines = [text] if text.strip() else []
    try:
        while (line := input("... ")).rstrip() != MULTILINE_QUOTE:
            lines.append(line)
    except EOFError:
        warn(f"\nthe input ended before {MULTILINE_QUOTE}: the question ends with it")
    except KeyboardInterrupt:
        print("\n(question dropped)")
        return "", False
    return "\n".join(lines), False


def typed_text() -> str:
    """Return the text of the line that Ctrl-C cleared; "" if this system has no readline."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def shown(text: str) -> str:
    """Return a text as it is, or for a terminal without what a terminal obeys."""
    return escape_controls(text) if sys.stdout.isatty() else text


def answer(session: ChatSession, question: str, stream: bool) -> None:
    """Answer a question of a chat."""
    chat_model, start = session.chat_model, time.perf_counter()
    question = as_text(question)
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
    questions = [as_text(question) for question in questions]
    requests = [chat_model.make_request(chat_model.make_prompt(question).ids) for question in questions]
    if len(requests) == 1:
        print_answer(chat_model, requests[0], stream)
        if not requests[0].finish_reason:
            raise KeyboardInterrupt
    else:
        for _ in chat_model.generate(requests):
            pass
        for question, request in zip(questions, requests, strict=True):
            print(shown(f"> {question}\n{request.written}"))
    for request in requests:
        warn_if_cut(request)


def answer_file(chat_model: ChatModel, path: Path) -> None:
    """Answer the prompts of a file, a line each, and print {"prompt", "answer", "finish_reason"} lines in its order.

    A line of a file that ends in .jsonl is {"prompt": text}; of another one, all but its line break is the prompt.
    Empty lines are skipped. "-" is stdin.
    """
    name = "stdin" if path == Path("-") else str(path)
    try:
        content = sys.stdin.buffer.read() if name == "stdin" else path.read_bytes()
        lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 ({error})") from None
    pending: deque[tuple[str, Request]] = deque()
    is_jsonl = path.suffix == ".jsonl"
    for number, line in enumerate(lines, 1):
        if line.strip() if is_jsonl else line:
            try:
                question = parse_prompt(line) if is_jsonl else line
                pending.append((question, chat_model.make_request(chat_model.make_prompt(question).ids)))
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {error}") from None
    if not pending:
        raise ValueError(f"{name}: no prompt in it")
    has_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name.startswith("utf")
    for _ in chat_model.generate([request for _, request in pending]):
        while pending and pending[0][1].finish_reason:
            question, request = pending.popleft()
            row = {"prompt": question, "answer": request.written, "finish_reason": request.finish_reason}
            print(shown(json.dumps(row, ensure_ascii=not has_unicode)), flush=True)


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
        text = dim_thought(shown(request.written), bool(request.finish_reason)) if dim else request.written
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
    print(("" if stream else shown(request.written)) + end)


def dim_thought(text: str, is_whole: bool) -> str:
    """Put terminal codes around the thought that a growing answer begins with; a beginning of <think> is held back."""
    start = text.lstrip()
    if THINK.startswith(start) and start != THINK and not is_whole:
        return ""
    if not start.startswith(THINK):
        return text
    thought, closing_tag, content = text.partition(END_THINK)
    return DIM + thought + closing_tag + (NORMAL if closing_tag or is_whole else "") + content
