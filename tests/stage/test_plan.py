"""The plan counts what rows cut, has the sizes of the documentation, describes the GPU, and advises on memory."""

import types

import numpy as np
import pytest
import torch
from factories import loss_weights, write_rows
from scoring import chat

from Config import PRESETS, LLMConfig
from dataset import SFTDataset
from engine.corpus.token_cache import open_or_build
from engine.machine import parallel, runtime
from engine.packing import pack, truncate_conversations
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


def test_plan_names_the_gpu_its_peak_and_the_rows_that_fit(fake_gpu, monkeypatch):
    def describe(name, dtype=torch.bfloat16):
        fake_gpu(name)
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


@pytest.fixture
def cache(small, tmp_path):
    rows = [chat("q", "a"), chat("q", "a", "q", "b" * 400), chat("q", "c" * 400), chat("q" * 400, "d"), chat("x", "e")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return open_or_build([path], SFTDataset, small, cache_dir=tmp_path / "cache")


def test_conversations_that_do_not_fit_are_counted_by_what_they_lose(cache):
    length = int(np.diff(cache.offsets)[0]) + 20
    segments = truncate_conversations(cache, np.arange(5), length)
    assert segments.truncated == (1, 1, 1) and len(segments.starts) == 4
    cut, whole = (pack(part, length, 0) for part in (segments, truncate_conversations(cache, np.array([0, 4]), length)))
    text = plan.describe_rows(cut, whole)
    assert "trained, longer than a row: 1 conversations lost their last turns, 1 end inside an answer" in text
    assert "1 dropped" in text and "held out, longer" not in text
    assert "held out, longer than a row: 1" in plan.describe_rows(whole, cut)


def test_the_plan_names_schemas_held_out_rows_and_missing_tags(cache):
    text = plan.describe_files(cache.meta["sources"], 2, loss_weights())
    assert text == "file   rows.jsonl: 5 rows (5 conversations); held out: 2 of 5 documents (--val_fraction 0: none)"
    assert "tags   none in an answer of 5 rows" in plan.describe_files(cache.meta["sources"], 2, loss_weights(10.0))


def test_the_plan_tells_texts_from_answers_and_warns_of_too_many(small, tmp_path):
    texts = [{"text": "boat " * number} for number in range(20, 30)]
    path = write_rows(tmp_path / "rows.jsonl", [chat("q", "abc")] * 5 + texts)
    cache = open_or_build([path], SFTDataset, small, cache_dir=tmp_path / "cache")
    learned = np.count_nonzero(cache.classes[: cache.offsets[5]])
    sizes = [int(cache.offsets[-1] - cache.offsets[5]) - 10, int(cache.offsets[5]) - 5]
    rows, held_out = (
        pack(truncate_conversations(cache, numbers, 128), 128, 0) for numbers in (np.arange(15), np.arange(13, 15))
    )
    share = sizes[0] / (sizes[0] + learned)
    text = plan.describe_texts(cache, rows, [1.0], held_out)
    assert share > 0.9 and text.startswith(
        f"texts  {sizes[0]:,} tokens next to {sizes[1]:,} of conversations, which have {learned:,} in answers: "
        f"{share:.1%} of what is learned is text; held out: {held_out.positions:,} tokens"
    )
    assert f"texts  {2 * sizes[0]:,} tokens next to {2 * sizes[1]:,} of" in plan.describe_texts(
        cache, rows, [2], held_out
    )
    assert "\nnote: more than 90% of what is learned is text" in text
    few = pack(truncate_conversations(cache, np.arange(6), 128), 128, 0)
    assert "note" not in plan.describe_texts(cache, few, [1.0], held_out)
