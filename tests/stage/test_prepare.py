"""Data of a stage fits its model."""

import types

import pytest
import torch
from tiny_model import tiny

from engine import options
from engine.machine.runtime import Runtime
from engine.stage import prepare


def test_rows_longer_than_the_model_are_refused():
    args = types.SimpleNamespace(data=options.Data(max_seq_len=129), training=options.Training())
    with pytest.raises(ValueError, match="--max_seq_len 129 is more than the 128 of the model"):
        prepare.pack(None, None, args, Runtime(torch.device("cpu"), torch.float32), tiny())
