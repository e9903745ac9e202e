"""A chat's memory and its commands: what a line that begins with / does."""

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace

from engine.talk.chat_model import ChatModel

HELP = '''/reset forgets what was said; /system TEXT is another system message (alone: the usual one)
/params shows how answers are made, /params NAME VALUE changes it; /save FILE adds the talk to a JSONL file as a row
""" begins and ends a question of several lines; Ctrl-C stops an answer; /exit (or Ctrl-D) ends, /help shows this'''


class ChatSession:
    """What was said since the last /reset, and how the next answer is made."""

    def __init__(self, conversation: ChatModel, history_cnt: int):
        self.conversation, self.history_cnt = conversation, history_cnt
        self.said: list[tuple[str, str]] = []
        self.turns = 0  # answers, for the seeds: a question that is asked again gets another one

    @property
    def remembered(self) -> list[tuple[str, str]]:
        """The pairs that the next question is asked after."""
        return self.said[-self.history_cnt :] if self.history_cnt else []

    def command(self, line: str) -> str:
        """Obey a line and say what was done. ValueError: it cannot be; EOFError: the talk ends."""
        name, _, words = line.partition(" ")
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
        return commands[name](words.strip())

    def reset(self, _: str) -> str:
        self.said.clear()
        return "forgotten"

    def exit(self, _: str) -> str:
        raise EOFError

    def system(self, words: str) -> str:
        if not self.conversation.chats:
            raise ValueError("/system: this model continues a text and has no system message")
        self.conversation = self.conversation._replace(system=words or None)
        return f"system message: {words or 'the usual one'}"

    def params(self, words: str) -> str:
        sampling = self.conversation.sampling
        values = {one.name: getattr(sampling, one.name) for one in fields(sampling)}
        values["max_new_tokens"] = self.conversation.max_new_tokens
        if words:
            name, _, value = words.partition(" ")
            if name not in values:
                raise ValueError(f"/params {name}: choose one of {', '.join(values)}")
            try:
                values[name] = type(values[name])(value)
            except ValueError:
                raise ValueError(f"/params {name} {value}: expected {type(values[name]).__name__}") from None
            limit = values.pop("max_new_tokens")
            if limit < 1:
                raise ValueError(f"max_new_tokens {limit} must be more than 0")
            self.conversation = self.conversation._replace(sampling=replace(sampling, **values), max_new_tokens=limit)
            values["max_new_tokens"] = limit
        return "  ".join(f"{name} {value}" for name, value in values.items())

    def save(self, words: str) -> str:
        """A row as the training scripts read it, at the end of a file that may be there."""
        if not words or not self.said:
            raise ValueError("/save FILE: nothing was said yet" if words else "/save FILE: into which file?")
        if self.conversation.chats:
            system = [] if self.conversation.system is None else [("system", self.conversation.system)]
            turns = [*system, *(turn for pair in self.said for turn in zip(("user", "assistant"), pair, strict=True))]
            rows = [{"conversations": [{"role": role, "content": content} for role, content in turns]}]
        else:
            rows = [{"text": asked + answered} for asked, answered in self.said]
        with open(os.path.expanduser(words), "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return f"{len(self.said)} pairs added to {words}"
