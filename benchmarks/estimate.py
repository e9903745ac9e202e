"""Estimate tokens, disk, memory and hours of the full corpus on named machines, before anything is downloaded.

    python -m benchmarks.estimate
    python -m benchmarks.estimate --gb 4 1 1 0.2 --dim 768 --n_layers 17 --n_heads 12 --n_kv_heads 4

hours = tokens x FLOPs per token (engine/machine/flops.py) / FLOPs per second. Each row says what is known of
the last factor: a speed that RESULTS.md has, or a share of the maker's peak. The last table tries the formula on the
demo's own times.
"""

import argparse
import itertools
import json
from dataclasses import dataclass

import torch

from benchmarks.compare import parser
from benchmarks.results import number, table
from Config import PRESETS, LLMConfig
from engine import cli
from engine.console import print0
from engine.flags import ROOT
from engine.machine.flops import flops_per_token
from engine.machine.gpu_specs import GPU_TFLOPS
from engine.options import ROAD
from engine.stage.plan import disk_needed, memory_needed
from model import SpongeBob
from runs import demo

# GB of JSONL. The original's page states those of the conversations; it does not state the others, which are taken to
# be as large as the files of that kind that minimind publishes (pretrain_hq.jsonl, r1_mix_1024.jsonl).
GB = {"pretrain": 1.6, "SFT": 7.1, "SFT_long": 5.2, "distill": 0.34, "distill_long": 0.34}
LENGTH = {"pretrain": 512, "SFT": 512}  # the other stages: 1,024
BYTES_PER_TOKEN = 3.23  # of the committed tokenizer on held-out text (spongebob_tokenizer/README.md)
CACHE_BYTES = 3  # per token: an id of two bytes, a class of one
# No GPU has run it yet. Two CPU cores whose matrix units are far ahead of their memory, as a GPU's are (AMX), turn 14 %
# (texts) and 18 % (conversations) of what plain products reach there, 3,028 GFLOP/s (docs/experiments.md), into
# training (RESULTS.md). A GPU is taken to do as well.
SHARE = 0.15
CARDS = ("T4", "RTX 3090", "RTX 4090", "A100", "H100")
CPUS = {  # what RESULTS.md calls them -> the sections of text and of conversations
    "AMD EPYC, two cores, float32": ("2026-11-24 14:00", "2026-11-24 13:51"),
    "Intel Xeon, two cores, AMX": ("2026-11-24 19:12", "2026-11-24 18:59"),
}
STARTING = 0.1  # minutes of a stage of the demo before its first step and after its last


@dataclass(frozen=True)
class Work:
    """A stage's tokens and FLOPs."""

    tokens: float
    flops: float


def parameters_of(shape: dict) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SpongeBob(LLMConfig(**shape)).parameters())


def work(shape: dict, length: int, tokens: float) -> Work:
    config = LLMConfig(**shape, max_seq_len=length)
    return Work(tokens, tokens * flops_per_token(config, parameters_of(shape)))


def corpus(shape: dict, gb: dict[str, float]) -> dict[str, Work]:
    """Every stage on its file, read once. Braces and keys of the JSONL count as text, so it is an upper bound."""
    return {name: work(shape, LENGTH.get(name, 1024), gb[name] * 1e9 / BYTES_PER_TOKEN) for name in ROAD}


def downloaded(gb: dict[str, float]) -> float:
    """GB of the four files; distill --long reads distill's."""
    return sum(gb.values()) - gb["distill_long"]


def disk(stages: dict[str, Work], gb: dict[str, float], parameters: int) -> float:
    """GB of the files, each once, their token caches, and five stages' weights and states."""
    caches = sum(stages[name].tokens for name in stages if name != "distill_long") * CACHE_BYTES / 1e9
    return downloaded(gb) + caches + len(stages) * disk_needed(parameters, keep=2) / 1e9


def micro_batch(flags: str = "--compile") -> float:
    """GiB that a process took at the default shape and micro-batch on a CPU, weights and optimizer included."""
    when = {"--compile": "2026-11-25 01:38", "--compile --activation_checkpointing": "2026-11-25 01:40"}[flags]
    return number(table("batch 32", when)[f"ours {flags}"]["peak memory, MiB"]) / 1024


def on_cpu(stages: dict[str, Work], name: str) -> float:
    """Hours of the default shape at the speeds that RESULTS.md has for texts and for conversations."""
    texts, conversations = (number(table(when)["ours"]["real tokens/s"]) for when in CPUS[name])
    return sum(stage.tokens / (texts if at == "pretrain" else conversations) for at, stage in stages.items()) / 3600


def on_gpu(stages: dict[str, Work], name: str, share: float = SHARE) -> float:
    """Hours at a share of the card's peak."""
    return sum(stage.flops for stage in stages.values()) / (share * GPU_TFLOPS[name] * 1e12) / 3600


def rounded(hours: float) -> str:
    return f"{hours:.1f}" if hours < 10 else f"{float(f'{hours:.2g}'):,.0f}"


def demo_shape() -> dict[str, int]:
    words = demo.SHAPE.replace("--", "").split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def demo_times() -> dict[str, tuple[float, float]]:
    """Return {stage: (minutes calculated, minutes measured)} of docs/demo.json.

    At one rate for the stages that had all cores, and one for those that ran at the same time.
    """
    shape = demo_shape()
    measured = json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))["stage_minutes"]
    flops = {}
    for name, (_, _, steps, _, rows) in demo.STAGES.items():
        length = LENGTH.get(name, 1024)
        flops[name] = work(shape, length, steps * rows * length).flops
    parallel = {*itertools.chain(*demo.BRANCHES)}
    times = {}
    for names in (flops.keys() - parallel, flops.keys() & parallel):
        rate = sum(flops[name] for name in names) / sum(measured[name] - STARTING for name in names)
        times |= {name: (STARTING + flops[name] / rate, measured[name]) for name in names}
    return {name: times[name] for name in flops}


def report(shape: dict, gb: dict[str, float], share: float) -> list[str]:
    stages, parameters = corpus(shape, gb), parameters_of(shape)
    default = shape == PRESETS["26M"]
    lines = ["| stage | GB of JSONL | million tokens | PFLOP |", "|---|---|---|---|"]
    for name, stage in stages.items():
        lines.append(f"| {name} | {gb[name]:g} | {stage.tokens / 1e6:,.0f} | {stage.flops / 1e15:,.0f} |")
    lines += ["", f"disk, calculated: {disk(stages, gb, parameters):.0f} GB (files, token caches, weights and states)"]
    lines += [f"memory, calculated: {memory_needed(parameters) / 2**20:,.0f} MiB (weights, gradients, optimizer)"]
    if default:
        lines += [f"memory, measured on a CPU: {micro_batch():.1f} GiB with the default micro-batch and --compile"]
    lines += ["", "| machine | hours | how it is known |", "|---|---|---|"]
    if default:
        lines += [f"| {name} | {rounded(on_cpu(stages, name))} | calculated from its measured speed |" for name in CPUS]
    for name in CARDS:
        known = f"calculated, at an assumed {share:.0%} of {GPU_TFLOPS[name]} TFLOP/s; no GPU has run it yet"
        lines.append(f"| {name} | {rounded(on_gpu(stages, name, share))} | {known} |")
    lines += ["", "the same formula on the demo's times (docs/demo.json), minutes:", ""]
    lines += ["| stage | calculated | measured |", "|---|---|---|"]
    return lines + [f"| {name} | {expected:.2f} | {actual:.2f} |" for name, (expected, actual) in demo_times().items()]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    files = ("pretrain.jsonl", "sft_512.jsonl", "sft_1024.jsonl", "r1_1024.jsonl")
    made.add_argument(
        "--gb", nargs=4, type=float, default=list(GB.values())[:4], metavar="GB", help=f"sizes of {', '.join(files)}"
    )
    made.add_argument("--share", type=float, default=SHARE, help="of a card's peak that training turns into products")
    for name, value in PRESETS["26M"].items():
        made.add_argument(f"--{name}", type=int, default=value, help="as in pretrain.py")
    return made.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if min(args.gb) < 0 or not 0 < args.share <= 1:
        raise ValueError("--gb must not be negative, --share must be above 0 and at most 1")
    shape = {name: getattr(args, name) for name in PRESETS["26M"]}
    print0("\n".join(report(shape, dict(zip(ROAD, [*args.gb, args.gb[3]], strict=True)), args.share)))


if __name__ == "__main__":
    cli.run(main)
