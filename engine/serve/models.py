"""The checkpoints of a folder as models by their names; each is read when somebody first asks for it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.generate.engine import GenerationEngine
from engine.talk.chat_model import ChatModel


class LoadedModel(NamedTuple):
    """A model in memory. Weights that were written anew since then are another one."""

    written: int  # st_mtime_ns of its file
    conversation: ChatModel
    slots: GenerationEngine


class Models:
    """`open_one` makes a Conversation of a .pth; `extra` may lie elsewhere; `count` answers at once for each model."""

    def __init__(self, folder: Path, extra: Path, open_one: Callable[[Path], ChatModel], count: int):
        self.folder, self.extra, self.open_one, self.count = folder, extra, open_one, count
        self._lock = threading.Lock()
        self._served: dict[str, LoadedModel] = {}

    def paths(self) -> dict[str, Path]:
        """{name: .pth}, as they lie there now."""
        found = {path.stem: path for path in sorted(self.folder.glob("*.pth")) if path.is_file()}
        return found | ({self.extra.stem: self.extra} if self.extra.is_file() else {})

    @property
    def default(self) -> str:
        return self.extra.stem

    def open_default(self) -> None:
        """Read the model that is meant where a request names none."""
        if self.extra.is_file():
            self.get(self.default)
        else:
            self.open_one(self.extra)  # which says what is missing

    def get(self, name: str) -> LoadedModel:
        """KeyError: no such model. ValueError: its file is none that can be used."""
        path = self.paths()[name]
        written = path.stat().st_mtime_ns
        if (served := self._served.get(name)) and served.written == written:
            return served  # without waiting for another one that is being read
        with self._lock:
            served = self._served.get(name)
            if served is None or served.written != written:
                self._served.pop(name, None)  # its requests are finished with the old one, which then goes
                served = None
                conversation = self.open_one(path)
                served = LoadedModel(
                    written, conversation, GenerationEngine(conversation.decoder, self.count, conversation.context)
                )
                self._served[name] = served
        return served
