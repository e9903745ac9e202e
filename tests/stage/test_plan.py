"""The plan's sizes are those of the documentation."""

import pytest
import torch

from Config import PRESETS, LLMConfig
from engine.stage.plan import memory_needed
from model import SpongeBob


@pytest.mark.parametrize(
    "name, millions, whole, eighth", [("26M", 26, 394, 49), ("110M", 110, 1707, 213), ("1B", 986, 15049, 1881)]
)
def test_a_preset_has_the_size_it_is_named_after_and_needs_the_memory_the_docs_say(name, millions, whole, eighth):
    """Counted on the meta device: MiB a GPU of weights, gradients and optimizer, alone and in eight shards."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SpongeBob(LLMConfig(**PRESETS[name])).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert [memory_needed(parameters, shards) // 2**20 for shards in (1, 8)] == [whole, eighth]
