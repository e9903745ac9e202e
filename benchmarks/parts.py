"""Profile a training step by its parts, and compare its matmuls with plain ones of the same sizes."""

import argparse
import time
import unittest.mock
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import compare, ours
from engine.stage import plan

# The first part whose word is in an operator's (on CUDA: a kernel's) name; what torch.compile fuses is one part.
PARTS = {
    "bookkeeping of autograd": ("autograd::", "backward0", "backward1"),
    "matmul": ("::mm", "::matmul", "::bmm", "::addmm", "::baddbmm", "::linear", "gemm", "cutlass", "nvjet"),
    "attention": ("attention", "flash", "fmha"),
    "optimizer": ("adam", "multi_tensor", "foreach", "muon"),
    "cross-entropy": ("softmax", "nll_loss", "cross_entropy"),
    "embedding": ("embedding",),
    "fused by compile": ("triton", "fused"),
    "casts, copies and layout": (
        "copy",
        "cat",
        "clone",
        "memcpy",
        "stack",
        "split",
        "index",
        "fill",
        "zero",
        "memset",
        "contiguous",
        "pin_memory",
    ),
    "sums and norms": ("sum", "norm", "mean", "pow", "rsqrt", "square"),
    "elementwise": ("mul", "add", "sub", "div", "silu", "elementwise", "neg", "sigmoid", "cos", "sin", "where"),
}
OTHER = "views and the rest"
SETUP = ("normal_", "uniform_", "random", "randperm")  # fresh weights are no part of a step
MATMULS = ("aten::mm", "aten::bmm")  # what addmm and linear end in, but for a bias


def part_of(operator: str) -> str:
    name = operator.lower()
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), OTHER)


def measure(args: argparse.Namespace, job: dict, steps: int = 6) -> list[str]:
    metrics = compare.run("benchmarks.parts", job | {"flags": args.ours[0], "steps": steps})
    if "failed" in metrics:
        raise ValueError(metrics["failed"])
    total = sum(metrics["parts"].values())
    lines = [["part", "share of the time"]]
    largest = sorted(metrics["parts"], key=metrics["parts"].get, reverse=True)
    lines += [[part, f"{metrics['parts'][part] / total:.1%}"] for part in largest]
    measured, plain = (sum(row[key] for row in metrics["matmuls"]) for key in ("measured", "plain"))
    sizes = [["matmul", "calls", "ms in training", "ms alone", "alone / in training"]]
    for row in metrics["matmuls"][:12]:
        ms, alone = (row[key] * 1e3 / row["calls"] for key in ("measured", "plain"))
        sizes.append([row["sizes"], str(row["calls"]), f"{ms:.3f}", f"{alone:.3f}", f"{alone / ms:.2f}"])
    summary = "No matmul was seen by its size: they are inside compiled code."
    if measured:
        summary = (
            f"Plain matmuls of the same sizes, timed alone, take {plain / measured:.1%} of what they take in training; "
            f"a step of nothing but them would take {plain / total:.1%} of the time."
        )
    optimizers = f"The optimizers' steps, their matmuls included, take {metrics['optimizers'] / total:.1%}."
    return [*compare.table(lines), "", optimizers, "", *compare.table(sizes), "", summary]


def main(job: dict) -> dict:
    """A short run of the stage's main() under the profiler, then its matmuls again, one size at a time.

    It begins behind the two micro-batches by which a stage estimates its time: they compile and touch memory for the
    first time. On the CPU the seconds are those of operators, Python between them is not counted; on CUDA only kernels.
    """
    cuda = job["device"] == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    profiler, trial = profile(activities=activities, record_shapes=True), plan.dry_run

    def trial_then_start(*args) -> str:
        estimate = trial(*args)
        profiler.start()
        return estimate

    with unittest.mock.patch.object(plan, "dry_run", trial_then_start):
        ours.main(job)
    profiler.stop()
    parts: dict[str, float] = defaultdict(float)
    optimizers = 0.0
    for event in profiler.key_averages():
        if event.key.startswith("Optimizer.step#"):
            optimizers += (event.device_time_total if cuda else event.cpu_time_total) / 1e6
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        is_operator = "::" in event.key or "fused" in event.key
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        if seconds and (is_kernel if cuda else is_operator) and not any(word in event.key for word in SETUP):
            parts[part_of(event.key)] += seconds
    matmuls = []
    for event in profiler.key_averages(group_by_input_shape=True):
        shapes = [shape for shape in event.input_shapes if shape][:2]  # behind them, where the result goes
        if event.key in MATMULS:
            seconds = (event.device_time_total if cuda else event.cpu_time_total) / 1e6
            plain = alone(*shapes, job["device"], getattr(torch, job["dtype"]))
            sizes = " @ ".join("x".join(map(str, shape)) for shape in shapes)
            row = {"sizes": sizes, "calls": event.count, "measured": seconds, "plain": plain * event.count}
            matmuls.append(row)
    matmuls.sort(key=lambda row: -row["measured"])
    return {"parts": parts, "optimizers": optimizers, "matmuls": matmuls}


def alone(left: list[int], right: list[int], device: str, dtype: torch.dtype, times: int = 5) -> float:
    """Seconds of one product of such matrices, the median of `times` (on CUDA of a hundred)."""
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in (left, right))
    out, taken = torch.matmul(a, b), []
    repeats = 100 if device == "cuda" else 1
    for _ in range(times):
        began = time.perf_counter()
        for _ in range(repeats):
            torch.matmul(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / repeats)
    return sorted(taken)[times // 2]


if __name__ == "__main__":
    compare.work(main)
