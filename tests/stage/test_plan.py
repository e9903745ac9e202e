"""What a run says before it starts: warm-up, memory."""

import pytest
import torch
from making import SHAPE, SHORT, log_of

import pretrain
from Config import PRESETS, LLMConfig
from engine.stage.plan import memory_needed
from model import SpongeBob


def test_warm_up_is_a_tenth_of_a_short_run_and_the_plan_says_so(folder, capsys):
    at = SHORT.index("--warmup_iters")
    pretrain.main([*SHAPE, *SHORT[:at], *SHORT[at + 2 :], "--max_steps", "20", "--log_step", "1"])
    assert "2 steps of warm-up" in capsys.readouterr().out
    rates = [
        row["learning_rate"] for row in log_of(folder / "results/pretrain.metrics.jsonl") if "learning_rate" in row
    ]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3]) and max(rates) == rates[2]


@pytest.mark.parametrize("name, millions, whole, eighth", [("26M", 26, 394, 49), ("110M", 110, 1707, 213),
                                                           ("1B", 986, 15049, 1881)])  # fmt: skip
def test_a_preset_has_the_size_it_is_named_after_and_needs_the_memory_the_docs_say(name, millions, whole, eighth):
    """Counted on the meta device: MiB a GPU of weights, gradients and optimizer, alone and in eight shards."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SpongeBob(LLMConfig(**PRESETS[name])).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert [memory_needed(parameters, shards) // 2**20 for shards in (1, 8)] == [whole, eighth]
