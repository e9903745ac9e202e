"""Talking to a checkpoint: one question, several at once, or a chat that remembers."""

from collections import deque
from collections.abc import Iterator

from engine.serve.conversation import Conversation


def chat(conversation: Conversation, history_cnt: int, stream: bool) -> None:
    """Ask and answer until the input ends. Ctrl-C stops an answer; what was said of it is remembered."""
    print("Ctrl-C stops an answer, Ctrl-D ends the talk.")
    history: deque[tuple[str, str]] = deque(maxlen=history_cnt)
    while True:
        try:
            question = input("> ").strip()
            if not question:
                continue
            ids = conversation.prompt(question, history)
        except (EOFError, KeyboardInterrupt):
            print("\nbye")
            return
        except ValueError as error:
            print(error)
            continue
        history.append((question, print_answer(conversation.stream(ids), stream)))


def answer_once(conversation: Conversation, questions: list[str], stream: bool) -> None:
    """Answer and end: one question as in the chat, several in one batch."""
    prompts = [conversation.prompt(question) for question in questions]
    if len(prompts) == 1:
        print_answer(conversation.stream(prompts[0]), stream)
        return
    for question, answer in zip(questions, conversation.answers(prompts), strict=True):
        print(f"> {question}\n{answer}")


def print_answer(pieces: Iterator[str], stream: bool) -> str:
    """Print an answer, piece by piece or when it is whole, and return it."""
    said = []
    try:
        for piece in pieces:
            said.append(piece)
            if stream:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    answer = "".join(said)
    print("" if stream else answer)
    return answer
