"""On a real CUDA card, skipped without one: numbers agree with the CPU, nothing waits, every bit comes again.

Never run so far: no card was at hand. benchmarks/gpu.py compares more, and measures.
"""

import pytest
import torch

import pretrain
from benchmarks import gpu
from engine.checkpoint.weights import read_tensors
from engine.files import read_log
from engine.options import SAMPLE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


def train(folder, name: str, *words: str) -> list[dict]:
    flags = (
        f"--data_path {SAMPLE / 'pretrain.jsonl'} --cache_dir {folder} --save_dir {folder} --name {name} --dim 128 "
        "--n_layers 2 --n_heads 2 --max_seq_len 128 --batch_size 8 --accumulation_steps 1 --eval_step 0 --save_step 0 "
        "--log_step 1 --num_workers 1"
    )
    pretrain.main([*flags.split(), *words])
    return read_log(folder / f"{name}.metrics.jsonl")


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


def test_losses_of_200_steps_agree_with_the_cpu(tmp_path):
    on_cuda = losses(train(tmp_path, "cuda", "--max_steps", "200", "--device", "cuda", "--dtype", "float32"))
    on_cpu = losses(train(tmp_path, "cpu", "--max_steps", "200", "--device", "cpu", "--dtype", "float32"))
    assert on_cuda[:20] == pytest.approx(on_cpu[:20], rel=1e-3) and on_cuda == pytest.approx(on_cpu, rel=0.03)


@pytest.mark.parametrize("heads", [1, 2, 4, 5, 8, 10, 16, 20])
def test_every_head_size_trains(tmp_path, heads):
    words = ["--max_steps", "2", "--device", "cuda", "--n_heads", str(heads), "--n_kv_heads", "1"]
    assert len(losses(train(tmp_path, "x", *words, "--dim", "160"))) == 2


def test_step_waits_for_nothing():
    loss = gpu.fresh()
    batch = gpu.rows()
    gpu.metrics(loss, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu.metrics(loss, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("part", gpu.EQUAL)
def test_results_that_must_be_equal_are(part):
    pair, tolerance = gpu.EQUAL[part]
    assert gpu.compared(pair, tolerance, dry=False).startswith("equal")


def test_two_deterministic_runs_have_the_same_bits(tmp_path):
    for name in ("a", "b"):
        train(tmp_path, name, "--max_steps", "20", "--device", "cuda", "--deterministic")
    a, b = (read_tensors(tmp_path / f"{name}.pth") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
