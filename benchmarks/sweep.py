"""Settings of ours against each other: the same small model and tokens, several seeds, held-out bits per byte.

    python -m benchmarks.sweep --data_path pretrain.jsonl --steps 150 \\
        --ours="--learning_rate 1e-3" --ours="--learning_rate 3e-3" --ours="--optimizer muon --learning_rate 6e-3"

Not a timing: as many runs as there are cores run at once, one thread each. What is read is the same for every way, so
--batch_size in --ours changes the number of steps, not that of tokens. One line a way, the best first.
"""

import argparse
import os
import shlex
import statistics
from pathlib import Path

from benchmarks import compare, rows
from engine import cli
from engine.options import SAMPLE
from engine.tokenizer import load_tokenizer


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--data_path", default=SAMPLE / "pretrain.jsonl", help="a pretraining JSONL file, or its cache")
    add("--ours", action="append", required=True, help="flags of pretrain.py, as --ours='--a 1 --b'; once for each way")
    add("--seeds", type=int, default=3, help="runs of each way, each with weights and rows of its own")
    add("--steps", type=int, default=150, help="optimizer steps of --batch_size rows")
    add("--batch_size", type=int, default=4, help="rows in a step, where a way names no other")
    compare.add_model(parser, dim=128, n_layers=4, n_heads=4)
    return parser.parse_args(argv)


def job_of(args: argparse.Namespace, cache: Path, flags: str, seed: int) -> dict:
    """Return the job of one run with some flags, for benchmarks.ours."""
    batch_size = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    batch_size.add_argument("--batch_size", type=int, default=args.batch_size)
    batch = batch_size.parse_known_args(shlex.split(flags))[0].batch_size
    steps = args.steps * args.batch_size // batch
    return compare.select(args, "max_seq_len", "val_fraction") | {
        "cache": str(cache.resolve()),
        "stage": "pretrain",
        "device": "cpu",
        "dtype": "float32",
        "shape": compare.select(args, "dim", "n_layers", "n_heads", "n_kv_heads"),
        "seed": seed,
        "batch_size": batch,
        "tokenizer_dir": str(Path(args.tokenizer_dir).resolve()),
        "steps": steps,
        "warmup_iters": max(1, steps // 20),
        "epochs": 1,
        "log_step": max(1, steps // 2),
        "eval_step": 0,
        "flags": flags,
    }


def table(results: dict[str, list[dict]]) -> list[str]:
    """Sort by the mean, the best first; flags of which a run failed say why."""
    lines = []
    for flags, metrics in results.items():
        if failed := compare.failure(metrics):
            lines.append((float("inf"), [flags, failed, "", ""]))
            continue
        last = [run["history"][-1][2] for run in metrics]
        deviation = f"{statistics.stdev(last):.3f}" if len(last) > 1 else "-"
        each = ", ".join(f"{bits:.3f}" for bits in last)
        lines.append((statistics.mean(last), [flags, f"{statistics.mean(last):.3f}", deviation, each]))
    lines = [line for _, line in sorted(lines, key=lambda line: line[0])]
    return compare.table([["flags", "held-out bits/byte, mean", "standard deviation", "each seed"], *lines])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    path, tokenizer = Path(args.data_path), load_tokenizer(args.tokenizer_dir)
    cache = rows.open_rows(path, tokenizer, Path(args.cache_dir), os.cpu_count() or 1)
    before = compare.machine()
    jobs = []
    for flags in args.ours:
        jobs += [(flags, job_of(args, cache.folder, flags, 42 + seed)) for seed in range(args.seeds)]
    results = compare.side_by_side(jobs, "benchmarks.ours")
    tokens = args.steps * args.batch_size * args.max_seq_len
    heading = f"sweep, {path.name}, {args.n_layers} layers x {args.dim}, {tokens:,} tokens"
    compare.publish(heading, "benchmarks.sweep", argv, table(results), Path(args.results), before)


if __name__ == "__main__":
    cli.run(main)
