"""A save that failed is repeated in the log until one succeeds."""

from types import SimpleNamespace

import pytest
import torch

from engine.checkpoint import training_state
from engine.machine.runtime import Runtime
from engine.options import Output
from engine.stage import saver as saver_module
from engine.stage.saver import Saver


def test_failed_save_is_forgotten_when_a_later_one_succeeds(tmp_path, monkeypatch):
    """The run then ends with code 0."""
    failing = [OSError("disk full")]

    def write(*_, **__):
        if failing:
            raise failing.pop()

    monkeypatch.setattr(training_state, "write", write)
    monkeypatch.setattr(saver_module, "save_weights", lambda *_: None)
    warnings = []
    tracker = SimpleNamespace(repeated_warning=None, warn=warnings.append)
    output = Output(save_dir=str(tmp_path), name="a")
    saver = Saver(Runtime(torch.device("cpu"), torch.float32), output, tracker, dict, {}, {}, "run")
    saver._write(2, {}, None, {}, {})
    assert "step 2 was not saved: disk full" in warnings[0]
    with pytest.raises(OSError, match="step 2 was not saved.*--resume"):
        saver.finish()
    saver._write(4, {}, None, {}, {})
    saver.finish()
    assert tracker.repeated_warning is None and len(warnings) == 1
