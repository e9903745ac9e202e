"""Calculated memory agrees with the memory that a fake GPU counts."""

from dataclasses import replace

import pytest
import torch

from Config import PRESETS, LLMConfig
from engine.machine.memory_estimate import MicroBatchSpec, memory_saving_flags, micro_batch_bytes, rows_that_fit

BASE = MicroBatchSpec(LLMConfig(**PRESETS["26M"], vocab_size=6400), 32, 512, torch.bfloat16)
GIB = 2**30


@pytest.mark.parametrize(
    "more, counted",
    [  # GiB
        ({}, 4.15),
        ({"rows": 16}, 2.05),
        ({"recompute": True}, 1.42),
        ({"chunk": 2048}, 3.14),
        ({"recompute": True, "chunk": 2048}, 0.73),
        ({"dtype": torch.float32}, 8.42),
        ({"compiled": True}, 2.25),
    ],
)
def test_calculated_memory_is_near_the_counted_memory(more, counted):
    assert micro_batch_bytes(replace(BASE, **more)) / GIB == pytest.approx(counted, rel=0.17)


def test_rows_that_fit_take_at_most_the_available_memory():
    rows = rows_that_fit(BASE, 20 * GIB)
    assert micro_batch_bytes(replace(BASE, rows=rows)) <= 20 * GIB < micro_batch_bytes(replace(BASE, rows=rows + 1))
    assert rows_that_fit(BASE, -1) == 0


@pytest.mark.parametrize(
    "more, first",
    [
        ({}, "--activation_checkpointing saves about 2.5 GiB"),
        ({"recompute": True, "compiled": True}, "--batch_size 16 with"),
        ({"recompute": True, "chunk": 2048, "compiled": True}, "--batch_size 16 with twice"),
    ],
)
def test_flag_that_saves_most_memory_is_named_first(more, first):
    assert memory_saving_flags(replace(BASE, **more)).startswith(first)
    assert memory_saving_flags(MicroBatchSpec(BASE.config, 1, 8, torch.bfloat16, True, 8, True)) == ""
