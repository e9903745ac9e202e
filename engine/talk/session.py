"""A chat's memory and its commands: lines that begin with /."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from engine.files import append_rows
from engine.generate.sampling import Sampling
from engine.talk.chat_model import Answers, ChatModel

HELP = '''/reset forgets the chat; /system TEXT sets another system message (alone: the usual one)
/params shows the settings, /params NAME VALUE changes one; /save FILE appends the chat to a JSONL file as a row
""" begins a question of several lines, and ends it on a line of its own; /exit (or Ctrl-D) ends, /help shows this
Ctrl-C stops an answer, or clears what is typed; twice, it ends'''


class ChatSession:
    """The question-answer pairs since the last /reset, and how the next answer is made."""

    def __init__(self, chat_model: ChatModel, history_cnt: int):
        self.chat_model, self.history_cnt = chat_model, history_cnt
        self.history: list[tuple[str, str]] = []
        self.turns = 0  # answers, for the seeds: a question that is asked again gets another one

    @property
    def recent_history(self) -> list[tuple[str, str]]:
        """The pairs that the next question is asked after."""
        return self.history[-self.history_cnt :] if self.history_cnt else []

    def command(self, line: str) -> str:
        """Run a command and return its result.

        Raises:
            ValueError: It cannot be run.
            EOFError: The chat ends.
        """
        name, _, argument = line.partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "/reset": self.reset,
            "/system": self.system,
            "/params": self.params,
            "/save": self.save,
            "/help": lambda _: HELP,
            "/exit": self.exit,
        }
        if name not in commands:
            raise ValueError(f"{name}: no such command\n{HELP}")
        return commands[name](argument.strip())

    def reset(self, _: str) -> str:
        """Forget all pairs."""
        self.history.clear()
        return "forgotten"

    def exit(self, _: str) -> str:
        """End the chat."""
        raise EOFError

    def system(self, message: str) -> str:
        """Set the system message."""
        if not self.chat_model.chats:
            raise ValueError("/system: this model continues a text and has no system message")
        self.chat_model = self.chat_model._replace(system=message or None)
        return f"system message: {message or 'the usual one'}"

    def params(self, argument: str) -> str:
        """Change a setting if one is given, and return all of them."""
        sampling = asdict(self.chat_model.sampling)
        settings = sampling | {"max_new_tokens": self.chat_model.max_new_tokens}
        name, _, value = argument.partition(" ")
        if name and name not in settings:
            raise ValueError(f"/params {name}: choose one of {', '.join(settings)}")
        if name:
            try:
                settings[name] = type(settings[name])(value)
            except ValueError:
                raise ValueError(f"/params {argument}: expected {type(settings[name]).__name__}") from None
            answers = Answers(settings["max_new_tokens"])
            changed = Sampling(**{name: settings[name] for name in sampling})
            self.chat_model = self.chat_model._replace(sampling=changed, max_new_tokens=answers.max_new_tokens)
        return "  ".join(f"{name} {value}" for name, value in settings.items())

    def save(self, path: str) -> str:
        """Append the chat to a file as a row that the training scripts read."""
        if not path:
            raise ValueError("/save FILE: into which file?")
        if not self.history:
            raise ValueError("/save FILE: there is nothing to save yet")
        if self.chat_model.chats:
            rows = [{"conversations": self.chat_model.build_messages(self.history)}]
        else:
            rows = [{"text": question + answer} for question, answer in self.history]
        append_rows(Path(os.path.expanduser(path)), rows)
        return f"{len(self.history)} pairs added to {path}"
