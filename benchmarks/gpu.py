"""What a stranger with an NVIDIA card runs, once, in under five minutes: is it right there, and how fast?

    python -m benchmarks.gpu                # appends one block to benchmarks/RESULTS.md
    python -m benchmarks.gpu --dry_run      # on a fake card: every part that needs no numbers, no measurement

First what must be equal, then training against the peers, decoding, and memory by batch. Send the block it writes as an
issue or a pull request: nobody here has all cards.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
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
    """A loss module on the card, with weights that are large enough to make a difference."""
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
    """Documents of LENGTHS, packed into full rows, or each in a row of its own."""
    import torch

    from engine.packing import Batch

    length, ids, kinds, starts = SHAPE["max_seq_len"], [], [], [0]
    for number, size in enumerate(LENGTHS * times):
        document = torch.arange(size) * (number % 7 + 1) % 6000 + 10
        space = length - size if padded else 0
        ids.append(torch.cat([document, torch.zeros(space, dtype=torch.long)]))
        kinds.append(torch.cat([torch.ones(size - 1), torch.zeros(1 + space)]))  # the last token predicts nothing
        starts += [starts[-1] + size, *([starts[-1] + length] if space else [])]
    ids, kinds = torch.cat(ids).view(-1, length), torch.cat(kinds).view(-1, length)
    table = torch.tensor(starts, dtype=torch.int32)
    return Batch(ids, ids.roll(-1, 1) * (kinds > 0), kinds.to(torch.uint8), kinds, table).to(torch.device(DEVICE))


def figures(loss, batch):
    """The sums of a micro-batch and its gradients' norm, in bf16."""
    import torch

    loss.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        sums = loss(*batch)
    sums[0].backward()
    return torch.stack([sums[0].detach(), torch.nn.utils.get_total_norm([p.grad for p in loss.parameters()])])


def packed_and_padded():
    loss = fresh()
    return figures(loss, rows()), figures(loss, rows(padded=True))


def kernel_and_mask():
    loss = fresh()
    with_kernel = figures(loss, rows())
    with patch("model.can_attend_by_document", lambda *_: False):
        return with_kernel, figures(loss, rows())


def compiled_and_eager(backend: str = "inductor"):
    loss = fresh()
    eager = figures(loss, rows())
    loss.compile(backend=backend, dynamic=False)
    return figures(loss, rows()), eager


def cached_and_full():
    """Greedy ids: step by step with the cache, and the whole row again for every token; in fp32."""
    import torch

    from engine.generate.engine import GenerationEngine, Request
    from engine.generate.fast_decoder import Decoder
    from engine.generate.sampling import Sampling

    model, ids = fresh().model.eval(), [5, 6, 7, 8]
    with torch.no_grad():  # fake tensors know no inference mode, which step's decorator brings
        slots = GenerationEngine(Decoder(model), 1, 32)
        request = slots.add(Request(ids, 16, sampling=Sampling(temperature=0)))
        while slots.busy:
            GenerationEngine.step.__wrapped__(slots)
        for _ in range(16):
            ids = [*ids, int(model(torch.tensor([ids]).to(DEVICE)).logits[0, -1].argmax())]
    return torch.tensor(request.ids), torch.tensor(ids[4:])


def whole_and_resumed():
    """The weights of a --deterministic run, and of one that was stopped after its first step and resumed."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        words = [
            *f"pretrain.py --data_path {SAMPLE}/pretrain.jsonl --save_dir {folder} --cache_dir {folder} --max_steps 6 "
            "--batch_size 8 --accumulation_steps 1 --dim 256 --n_layers 4 --device cuda --deterministic".split()
        ]
        for more in (["--name", "a"], ["--name", "b", "--max_minutes", "1e-9"], ["--name", "b", "--resume"]):
            done = subprocess.run([sys.executable, *words, *more], cwd=fake_cuda.ROOT, capture_output=True, text=True)
            if done.returncode not in (0, 75):
                raise ValueError(done.stderr.strip().splitlines()[-1])
        a, b = (torch.load(f"{folder}/{name}.pth", weights_only=True) for name in "ab")
        return tuple(torch.cat([one[name].flatten() for name in sorted(one)]) for one in (a, b))


# The part -> (what makes the two, how far apart they may be; 0: every bit).
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
            one, other = pair()
    except (RuntimeError, ValueError, ImportError) as error:
        return f"failed: {str(error).splitlines()[0]}"
    if one.shape != other.shape:
        return f"NOT equal: {tuple(one.shape)} and {tuple(other.shape)}"
    if dry:
        return "ran; on a fake card there are no numbers"
    apart = ((one - other).abs() / other.abs().clamp(min=1e-9)).max().item()
    return f"equal, {apart:.1e} apart" if apart <= tolerance else f"NOT equal: {apart:.1e} apart"


def memory(dry: bool) -> list[str]:
    """Peak memory of a micro-batch of the default shape by its rows, and what was calculated for it."""
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
                figures(loss, batch)
            peak = watch.peak
        else:
            torch.cuda.reset_peak_memory_stats()
            figures(loss, batch)
            peak = torch.cuda.max_memory_allocated()
        load = MicroBatchSpec(LLMConfig(**SHAPE | shape), *batch.inputs.shape, torch.bfloat16)
        lines.append(
            f"{len(batch.inputs)} rows x 256: {peak / 2**20:,.0f} MiB {'counted' if dry else 'at the peak'} "
            f"({micro_batch_bytes(load) / 2**20:,.0f} calculated)"
        )
    return lines


def measured(name: str, module: str, words: list[str], results: Path) -> str:
    """Run a benchmark that appends its own table; how it ended."""
    command = [sys.executable, "-m", module, *words, "--device", "cuda", "--results", str(results)]
    done = subprocess.run(command, cwd=fake_cuda.ROOT, capture_output=True, text=True)
    if not done.returncode:
        return f"{name}: the table above"
    said = done.stderr.strip().splitlines()
    return f"{name}: not measured: {said[-1] if said else done.returncode}"


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

    lines, wrong = [], 0
    for name, (pair, tolerance) in EQUAL.items():
        if dry and pair is whole_and_resumed:
            lines.append(f"* {name}: not run: the stage is a process of its own")
            continue
        if dry and pair is compiled_and_eager:
            pair = lambda: compiled_and_eager("aot_eager")
        said = compared(pair, tolerance, dry)
        wrong += said.startswith(("NOT", "failed"))
        lines.append(f"* {name}: {said}")
        print(lines[-1], flush=True)
    lines += [f"* memory, {line}" for line in memory(dry)]
    for name, (module, *words) in RUNS.items():
        lines.append(
            f"* {name}: would run python -m {module}" if dry else f"* {measured(name, module, words, results)}"
        )
    heading = f"## One GPU: {torch.cuda.get_device_name()}, torch {torch.__version__}"
    block = "\n".join(["", heading, "", *lines, ""])
    print(block)
    if results:
        with open(results, "a", encoding="utf-8") as file:
            file.write(block)
        print(f"appended to {os.path.relpath(results)}: send it as an issue or a pull request, whatever it says")
    return 1 if wrong else 0


if __name__ == "__main__":
    if "--dry_run" in sys.argv:  # before torch
        sys.exit(main())
    from engine import cli

    cli.run(main)
