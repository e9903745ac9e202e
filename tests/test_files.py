"""A file is written whole or not at all."""

import json
import math

import pytest

from engine.files import atomic_write, write_json


def test_what_breaks_off_leaves_the_file_of_before_and_nothing_else(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("of before")

    def breaks_off(target):
        target.write_text("hal")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, breaks_off)
    assert path.read_text() == "of before" and list(tmp_path.iterdir()) == [path]
    atomic_write(path, lambda target: target.write_text("whole"))
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_write_json_writes_null_for_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, -math.inf], "b": {"c": math.inf}})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content == {"a": [None, 1.5, None], "b": {"c": None}}
