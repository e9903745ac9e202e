"""What the plan says of a card before the first step, with cards that are not there."""

import types

import pytest
import torch

from benchmarks import gpu
from Config import PRESETS, LLMConfig
from engine.machine import memory_estimate, parallel, runtime
from engine.machine.memory_estimate import MicroBatchSpec
from engine.stage import plan

BASE = MicroBatchSpec(LLMConfig(**PRESETS["26M"], vocab_size=6400), 32, 512, torch.bfloat16)
WEIGHTS = 25_829_888


@pytest.mark.parametrize(
    "more, counted",
    [  # GiB, by the fake card
        ({}, 4.15),
        ({"rows": 16}, 2.05),
        ({"recompute": True}, 1.42),
        ({"chunk": 2048}, 3.14),
        ({"recompute": True, "chunk": 2048}, 0.73),
        ({"dtype": torch.float32}, 8.42),
        ({"compiled": True}, 2.25),
    ],
)
def test_calculated_memory_is_near_what_was_counted(more, counted):
    spec = MicroBatchSpec(**vars(BASE) | more)
    assert memory_estimate.micro_batch_bytes(spec) / 2**30 == pytest.approx(counted, rel=0.17)


def test_the_rows_that_fit_take_no_more_than_there_is():
    rows = memory_estimate.rows_that_fit(BASE, 20 * 2**30)
    more = MicroBatchSpec(**vars(BASE) | {"rows": rows + 1})
    assert (
        memory_estimate.micro_batch_bytes(MicroBatchSpec(**vars(BASE) | {"rows": rows}))
        <= 20 * 2**30
        < memory_estimate.micro_batch_bytes(more)
    )
    assert memory_estimate.rows_that_fit(BASE, -1) == 0


def a_run(dtype=torch.bfloat16):
    """What plan.describe's lines about the card need of a run."""
    return types.SimpleNamespace(
        runtime=runtime.Runtime(torch.device("cuda", 0), dtype),
        compiling=parallel.CompileDecision(False, ""),
        model=types.SimpleNamespace(config=BASE.config, recompute=False),
        loss=types.SimpleNamespace(chunk=0),
        training=types.SimpleNamespace(batch_size=32),
    )


@pytest.fixture
def a_4090(monkeypatch):
    properties = types.SimpleNamespace(total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce RTX 4090")
    return monkeypatch


def test_plan_names_the_gpu_its_peak_and_the_rows_that_fit(a_4090):
    line = plan._describe_gpu(a_run(), 16 * WEIGHTS)
    assert "card   NVIDIA GeForce RTX 4090, 24 GiB, 165 TFLOP/s by its data sheet" in line
    assert "calculated, not measured: micro-batches of up to 167 rows fit" in line


def test_plan_names_no_peak_for_fp32_or_an_unknown_gpu(a_4090):
    assert "data sheet" not in plan._describe_gpu(a_run(torch.float32), 16 * WEIGHTS)
    a_4090.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce RTX 4090 Laptop GPU")
    line = plan._describe_gpu(a_run(), 16 * WEIGHTS)
    assert "data sheet" not in line and "rows fit" in line


@pytest.mark.parametrize(
    "more, first",
    [
        ({}, "--activation_checkpointing saves about 2.5 GiB"),
        ({"recompute": True, "compiled": True}, "--batch_size 16 with"),
        ({"recompute": True, "chunk": 2048, "compiled": True}, "--batch_size 16 with twice"),
    ],
)
def test_what_helps_most_against_too_little_memory_is_named_first(more, first):
    assert memory_estimate.memory_saving_flags(MicroBatchSpec(**vars(BASE) | more)).startswith(first)
    assert memory_estimate.memory_saving_flags(MicroBatchSpec(BASE.config, 1, 8, torch.bfloat16, True, 8, True)) == ""


def test_out_of_memory_in_the_trial_is_one_line_that_names_the_flags(monkeypatch):
    def full(run, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore lines")

    monkeypatch.setattr(plan, "_time_micro_batch", full)
    monkeypatch.setattr(plan, "load_step", lambda run, step: ([None], None))
    run = a_run()
    run.loss.train = lambda: None
    with pytest.raises(
        ValueError, match=r"^out of GPU memory with micro-batches of 32 rows.*: --activation_check"
    ) as e:
        plan.dry_run(run, types.SimpleNamespace(step=0))
    assert "\n" not in str(e.value)


# -------------------------------------------------------------------------------------------- python -m benchmarks.gpu


@pytest.mark.parametrize("part", ["packed = padded", "cached ids = full"])
def test_what_the_report_compares_is_equal_on_the_cpu_and_it_would_notice(part, monkeypatch, one_thread):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "SHAPE", gpu.SHAPE | {"dim": 64, "n_layers": 1, "vocab_size": 6400})
    pair, tolerance = gpu.EQUAL[part]
    assert gpu.compared(pair, tolerance, dry=False).startswith("equal")
    assert gpu.compared(lambda: (pair()[0], 2 * pair()[1] + 1), tolerance, dry=False).startswith("NOT equal")
