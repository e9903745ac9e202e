"""Check correctness and speed on one NVIDIA GPU, in under five minutes.

    python -m benchmarks.gpu                # appends one block to benchmarks/RESULTS.md
    python -m benchmarks.gpu --dry_run      # on a fake card: every part that needs no numbers, no measurement

First what must be equal, then training against the peers, decoding, and memory by batch. Please send the block it
writes as an issue or a pull request: most cards have not been measured.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks import fake_cuda

SHAPE = {"dim": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 6400, "max_seq_len": 256}
LENGTHS = (256, 100, 90, 66, 200, 56)  # three full rows
SAMPLE = "data/sample"
DEVICE = "cuda"
RUNS = {  # the part -> its command; each appends its own table to --results
    "training on text": ["benchmarks.train", "--data_path", f"{SAMPLE}/pretrain.jsonl"],
    "training on conversations": ["benchmarks.train", "--data_path", f"{SAMPLE}/sft_512.jsonl"],
    "decoding": ["benchmarks.decode", "--batch_size", "1", "8"],
}


def fresh(**shape):
    """Return a loss module on the card, with weights that are large enough to make a difference."""
    import torch

    from Config import LLMConfig
    from engine.loss import TokenLoss
    from model import SpongeBob

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = SpongeBob(LLMConfig(**SHAPE | shape))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.05)
        return TokenLoss(model)


def rows(padded: bool = False, times: int = 1):
    """Return documents of LENGTHS, packed into full rows, or each in a row of its own."""
    import torch

    from engine.packing import Batch

    ids, loss_weights = [], []
    starts = [0]
    length = SHAPE["max_seq_len"]
    for number, size in enumerate(LENGTHS * times):
        document = torch.arange(size) * (number % 7 + 1) % 6000 + 10
        space = length - size if padded else 0
        ids.append(torch.cat([document, torch.zeros(space, dtype=torch.long)]))
        loss_weights.append(
            torch.cat([torch.ones(size - 1), torch.zeros(1 + space)])
        )  # the last token predicts nothing
        starts.append(starts[-1] + size)
        if space:
            starts.append(starts[-1] + space)
    ids, loss_weights = (torch.cat(parts).view(-1, length) for parts in (ids, loss_weights))
    labels, cu_seqlens = ids.roll(-1, 1) * (loss_weights > 0), torch.tensor(starts, dtype=torch.int32)
    return Batch(ids, labels, loss_weights.to(torch.uint8), loss_weights, cu_seqlens).to(torch.device(DEVICE))


def metrics(loss, batch):
    """Return the first sum of a micro-batch and its gradients' norm, in bf16."""
    import torch

    loss.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        sums = loss(*batch)
    sums[0].backward()
    return torch.stack([sums[0].detach(), torch.nn.utils.get_total_norm([p.grad for p in loss.parameters()])])


def packed_and_padded():
    loss = fresh()
    return metrics(loss, rows()), metrics(loss, rows(padded=True))


def kernel_and_mask():
    loss = fresh()
    with_kernel = metrics(loss, rows())
    with patch("model.supports_varlen_attention", lambda *_: False):
        return with_kernel, metrics(loss, rows())


def compiled_and_eager(backend: str = "inductor"):
    loss = fresh()
    eager = metrics(loss, rows())
    loss.compile(backend=backend, dynamic=False)
    return metrics(loss, rows()), eager


def cached_and_full(num_tokens: int = 16):
    """Return greedy ids in fp32: step by step with the cache, and the whole row again for every token."""
    import torch

    from engine.generate.engine import GenerationEngine, Request
    from engine.generate.fast_decoder import Decoder
    from engine.generate.sampling import Sampling

    model, ids = fresh().model.eval(), [5, 6, 7, 8]
    with torch.no_grad():  # fake tensors know no inference mode, which step's decorator brings
        engine = GenerationEngine(Decoder(model), 1, 32)
        request = engine.add(Request(ids, num_tokens, sampling=Sampling(temperature=0)))
        while engine.busy:
            GenerationEngine.step.__wrapped__(engine)
        for _ in range(num_tokens):
            ids = [*ids, int(model(torch.tensor([ids]).to(DEVICE)).logits[0, -1].argmax())]
    return torch.tensor(request.ids), torch.tensor(ids[4:])


def whole_and_resumed():
    """Return the weights of a --deterministic run, and of one that was stopped after its first step and resumed."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        argv = [
            *f"pretrain.py --data_path {SAMPLE}/pretrain.jsonl --save_dir {folder} --cache_dir {folder} --max_steps 6 "
            "--batch_size 8 --accumulation_steps 1 --dim 256 --n_layers 4 --device cuda --deterministic".split()
        ]
        for more in (["--name", "a"], ["--name", "b", "--max_minutes", "1e-9"], ["--name", "b", "--resume"]):
            done = subprocess.run([sys.executable, *argv, *more], cwd=fake_cuda.ROOT, capture_output=True, text=True)
            if done.returncode not in (0, 75):
                raise ValueError(done.stderr.strip().splitlines()[-1])
        states = [torch.load(f"{folder}/{name}.pth", weights_only=True) for name in "ab"]
        return tuple(torch.cat([state[name].flatten() for name in sorted(state)]) for state in states)


# The part -> (the function that returns the two, their largest relative difference; 0: bitwise equal).
EQUAL = {
    "packed = padded": (packed_and_padded, 0.01),
    "kernel = mask": (kernel_and_mask, 0.01),
    "compiled = eager": (compiled_and_eager, 0.01),
    "cached ids = full": (cached_and_full, 0),
    "resumed = whole": (whole_and_resumed, 0),
}


def compared(pair: Callable, tolerance: float, dry: bool) -> str:
    try:
        with fake_cuda.watch() if dry else contextlib.nullcontext():  # it answers what a fake tensor cannot
            actual, expected = pair()
    except (RuntimeError, ValueError, ImportError) as error:
        return f"failed: {str(error).splitlines()[0]}"
    if actual.shape != expected.shape:
        return f"NOT equal: {tuple(actual.shape)} and {tuple(expected.shape)}"
    if dry:
        return "ran; on a fake card there are no numbers"
    apart = ((actual - expected).abs() / expected.abs().clamp(min=1e-9)).max().item()
    return f"equal, {apart:.1e} apart" if apart <= tolerance else f"NOT equal: {apart:.1e} apart"


def memory(dry: bool) -> list[str]:
    """Report the peak memory of a micro-batch of the default shape by its rows, and the calculated one."""
    import torch

    from Config import LLMConfig
    from engine.machine.memory_estimate import MicroBatchSpec, micro_batch_bytes

    lines = []
    for times in (2, 8, 16):
        batch, shape = rows(times=times), {"dim": 512, "n_layers": 8, "n_heads": 8}
        loss = fresh(**shape)
        watch = fake_cuda.watch() if dry else None
        if dry:
            with watch:
                metrics(loss, batch)
            peak = watch.peak
        else:
            torch.cuda.reset_peak_memory_stats()
            metrics(loss, batch)
            peak = torch.cuda.max_memory_allocated()
        load = MicroBatchSpec(LLMConfig(**SHAPE | shape), *batch.inputs.shape, torch.bfloat16)
        lines.append(
            f"{len(batch.inputs)} rows x 256: {peak / 2**20:,.0f} MiB {'counted' if dry else 'at the peak'} "
            f"({micro_batch_bytes(load) / 2**20:,.0f} calculated)"
        )
    return lines


def measured(name: str, module: str, argv: list[str], results: Path) -> str:
    """Run a benchmark that appends its own table, and report how it ended."""
    command = [sys.executable, "-m", module, *argv, "--device", "cuda", "--results", str(results)]
    done = subprocess.run(command, cwd=fake_cuda.ROOT, capture_output=True, text=True)
    if not done.returncode:
        return f"{name}: the table above"
    return f"{name}: not measured: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry_run", action="store_true", help="on a fake card, without numbers")
    default = fake_cuda.ROOT / "benchmarks" / "RESULTS.md"
    parser.add_argument("--results", type=Path, default=default, help="file the block is appended to")
    args = parser.parse_args(argv)
    if args.dry_run:
        if reason := fake_cuda.missing():
            print(f"not run: {reason}")
            return 0
        fake_cuda.load_guard()
        fake_cuda.pretend(fake_cuda.H100)
        with fake_cuda.tensors():
            return report(dry=True, results=None)
    from engine.machine import gpu_specs, runtime

    runtime.resolve_device(DEVICE)  # or the reason why there is none
    import torch

    gpu_specs.check_compute_capability(torch.device("cuda", 0))
    return report(dry=False, results=args.results)


def report(dry: bool, results: Path | None) -> int:
    import torch

    lines, failures = [], 0
    for name, (pair, tolerance) in EQUAL.items():
        if dry and pair is whole_and_resumed:
            lines.append(f"* {name}: not run: the stage is a process of its own")
            continue
        if dry and pair is compiled_and_eager:
            pair = partial(compiled_and_eager, "aot_eager")
        outcome = compared(pair, tolerance, dry)
        failures += outcome.startswith(("NOT", "failed"))
        lines.append(f"* {name}: {outcome}")
        print(lines[-1], flush=True)
    lines += [f"* memory, {line}" for line in memory(dry)]
    for name, (module, *argv) in RUNS.items():
        outcome = f"{name}: would run python -m {module}" if dry else measured(name, module, argv, results)
        lines.append(f"* {outcome}")
    heading = f"## One GPU: {torch.cuda.get_device_name()}, torch {torch.__version__}"
    block = "\n".join(["", heading, "", *lines, ""])
    print(block)
    if results:
        with open(results, "a", encoding="utf-8") as file:
            file.write(block)
        print(f"appended to {os.path.relpath(results)}: send it as an issue or a pull request, whatever it says")
    return 1 if failures else 0


if __name__ == "__main__":
    if "--dry_run" in sys.argv:  # before torch
        sys.exit(main())
    from engine import cli

    cli.run(main)
