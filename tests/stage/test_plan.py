"""The plan's sizes are those of the documentation; it describes the GPU, and advises when memory runs out."""

import types

import pytest
import torch

from Config import PRESETS, LLMConfig
from engine.machine import parallel, runtime
from engine.stage import plan
from engine.stage.plan import memory_needed
from model import SpongeBob


@pytest.mark.parametrize(
    "name, millions, whole, eighth", [("26M", 26, 394, 49), ("110M", 110, 1707, 213), ("1B", 986, 15049, 1881)]
)
def test_preset_has_its_size_and_the_documented_memory(name, millions, whole, eighth):
    """Counted on the meta device: MiB a GPU of weights, gradients and optimizer, alone and in eight shards."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SpongeBob(LLMConfig(**PRESETS[name])).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert [memory_needed(parameters, shards) // 2**20 for shards in (1, 8)] == [whole, eighth]


def gpu_run(dtype=torch.bfloat16):
    """Make what the plan reads of a run on a GPU."""
    return types.SimpleNamespace(
        runtime=runtime.Runtime(torch.device("cuda", 0), dtype),
        compiling=parallel.CompileDecision(False, ""),
        model=types.SimpleNamespace(config=LLMConfig(**PRESETS["26M"], vocab_size=6400), recompute=False),
        loss=types.SimpleNamespace(chunk=0, train=lambda: None),
        training=types.SimpleNamespace(batch_size=32),
    )


def test_plan_names_the_gpu_its_peak_and_the_rows_that_fit(monkeypatch):
    def describe(name, dtype=torch.bfloat16):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        return plan._describe_gpu(gpu_run(dtype), 16 * 25_829_888)

    properties = types.SimpleNamespace(total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    line = describe("NVIDIA GeForce RTX 4090")
    assert "card   NVIDIA GeForce RTX 4090, 24 GiB, 165 TFLOP/s by its data sheet" in line
    assert "calculated, not measured: micro-batches of up to 167 rows fit" in line
    assert "data sheet" not in describe("NVIDIA GeForce RTX 4090", torch.float32)
    line = describe("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert "data sheet" not in line and "rows fit" in line


def test_out_of_memory_in_the_dry_run_is_one_line_with_flags(monkeypatch):
    def full(run, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore lines")

    monkeypatch.setattr(plan, "_time_micro_batch", full)
    monkeypatch.setattr(plan, "load_step", lambda run, step: ([None], None))
    message = r"^out of GPU memory with micro-batches of 32 rows.*: --activation_check"
    with pytest.raises(ValueError, match=message) as error:
        plan.dry_run(gpu_run(), types.SimpleNamespace(step=0))
    assert "\n" not in str(error.value)
