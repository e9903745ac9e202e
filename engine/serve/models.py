"""The checkpoints of a folder as models by their names; each is read at the first request for it."""

import contextlib
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine.generate.engine import GenerationEngine
from engine.talk.chat_model import ChatModel


class LoadedModel(NamedTuple):
    """A model in memory."""

    chat_model: ChatModel
    engine: GenerationEngine


@dataclass
class Models:
    """The models of a folder."""

    folder: Path
    default_path: Path  # for requests that name no model; in the folder or elsewhere
    open_model: Callable[[Path], ChatModel]
    num_slots: int  # requests of a model that are answered at once
    is_closed: bool = False  # no more files are read
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _broken: set[tuple[str, int]] = field(default_factory=set)  # could not be opened
    _loaded: dict[tuple[str, int], LoadedModel] = field(default_factory=dict)  # by name and time of writing

    def paths(self) -> dict[str, Path]:
        """Return {name: .pth} of the files that are there now."""
        paths = [*sorted(self.folder.glob("*.pth")), self.default_path]
        return {path.stem: path for path in paths if path.is_file()}

    def listing(self) -> dict[str, int]:
        """Return {name: time of writing in seconds} of the files that are whole, as far as is known."""
        listing = {}
        for name, path in self.paths().items():
            with contextlib.suppress(OSError):  # removed in the meantime
                key = name, path.stat().st_mtime_ns
                if key in self._loaded or (zipfile.is_zipfile(path) and key not in self._broken):
                    listing[name] = key[1] // 10**9
        return listing

    @property
    def default(self) -> str:
        """Name of the model for requests that name none."""
        return self.default_path.stem

    def open_default(self) -> None:
        """Read the default model."""
        if self.default_path.is_file():
            self.get(self.default)
        else:
            self.open_model(self.default_path)  # which says what is missing

    def close(self) -> None:
        """Read no more files: requests that wait for one must not keep the server from stopping."""
        self.is_closed = True

    def get(self, name: str) -> LoadedModel:
        """Return a model, read from its file if it is not in memory.

        Raises:
            KeyError: No such model.
            ValueError: Its file cannot be used.
        """
        path = self.paths()[name]
        key = name, path.stat().st_mtime_ns
        loaded = self._loaded.get(key)  # without waiting for another model that is being read
        if loaded is None:
            with self._lock:
                loaded = self._loaded.get(key)
                if loaded is None and self.is_closed:
                    raise ValueError("the server is stopping")
                if loaded is None:
                    # Requests to a file that was written again are finished with the old weights, which are then freed.
                    self._loaded = {other: model for other, model in self._loaded.items() if other[0] != name}
                    self._broken.add(key)  # until it is open
                    chat_model = self.open_model(path)
                    self._broken.remove(key)
                    engine = GenerationEngine(chat_model.decoder, self.num_slots, chat_model.context)
                    loaded = self._loaded[key] = LoadedModel(chat_model, engine)
        return loaded
