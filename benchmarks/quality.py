"""Compare quality on equal terms, ours and the peers from fresh weights to distillation: equal tokens or time a stage.

    python -m benchmarks.quality --data pretrain.jsonl sft_512.jsonl r1_1024.jsonl --tokens 300e3 100e3 100e3
    python -m benchmarks.quality --data pretrain.jsonl sft_512.jsonl r1_1024.jsonl --seconds 120 60 60

Every contender has the same shape, tokenizer, rows and held-out rows, and starts a stage from what its own last stage
left. What it leaves is a checkpoint with our names, scored as `eval_model.py --score` does: bits per byte after
pretraining, loss on answers after SFT, well-formed and correct answers after distillation. With --tokens there are as
many runs at once as there are cores, one thread each; with --seconds one at a time. Tokenizing, compiling and scoring
are not timed.
"""

import argparse
import importlib
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import compare, rows
from benchmarks.train import MODULES, planned
from dataset import PretrainDataset
from engine.checkpoint.weights import load_model
from engine.corpus import jsonl
from engine.corpus.held_out import held_out_hashes, read_row
from engine.machine import runtime
from engine.options import SAMPLE
from engine.score import evaluate, records
from engine.tokenizer import load_tokenizer

STAGES = tuple(rows.DATASETS)
METRICS = {  # column: (stage, metric of its held-out rows)
    "bits/byte after pretraining": ("pretrain", "bits_per_byte"),
    "answer loss after SFT": ("SFT", "answer_loss"),
    "well-formed after distillation": ("distill", "well_formed"),
    "correct after distillation": ("distill", "correct"),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    sample = [str(SAMPLE / name) for name in ("pretrain.jsonl", "sft_512.jsonl", "r1_1024.jsonl")]
    add("--data", nargs=3, default=sample, metavar="FILE", help="rows of pretraining, SFT and distillation")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", type=float, nargs=3, metavar="N", help="real tokens of each stage")
    budget.add_argument("--seconds", type=float, nargs=3, metavar="S", help="seconds of training of each stage")
    add("--peers", nargs="*", choices=MODULES, default=list(MODULES), help="who else")
    add("--ours", action="append", help="flags of our three stages, as --ours='--a 1 --b'; once for each way")
    add("--rates", type=float, nargs=3, default=[1e-2, 8e-3, 8e-3], help="ours' peak rates, stage by stage")
    add("--peer_rates", type=float, nargs=3, default=[4e-3, 2e-3, 2e-3], help="those of the peers' AdamW")
    add("--batch_size", type=int, default=8, help="rows in a step, where --ours names no other")
    add("--seeds", type=int, default=3, help="runs of each contender, with weights and rows of their own")
    add("--answers", type=int, default=100, help="held-out rows that are scored after each stage")
    add("--max_new_tokens", type=int, default=300, help="of an answer")
    compare.add_model(parser, dim=128, n_layers=4, n_heads=4)
    args = parser.parse_args(argv)
    args.ours = args.ours or ["--optimizer muon --schedule linear --batch_size 4"]
    return args


def hash_of(line: bytes) -> int:
    """Return the hash by which a JSONL line is held out."""
    return read_row(PretrainDataset, jsonl.parse_line(line))[0]


def write_heldout(path: Path, out: Path, val_fraction: float, count: int, seed: int = 0) -> None:
    """Write `count` random rows of those that every run holds out of a file."""
    lines = [line for _, line in jsonl.read_lines(path)]
    hashes = np.array([hash_of(line) for line in lines], dtype=np.uint64)
    held_out = np.flatnonzero(np.isin(hashes, held_out_hashes([hashes], val_fraction)))
    selected = np.random.default_rng(seed).permutation(held_out)[:count]
    out.write_bytes(b"".join(lines[number].rstrip() + b"\n" for number in sorted(selected)))


def main(job: dict) -> dict:
    """Run a contender's three stages, and score each."""
    folder, module = Path(job["folder"]), importlib.import_module(job["module"])
    results: dict = {"tokens": [], "seconds": [], "scored": []}
    parent = {}
    for stage in STAGES:
        out, stage_folder = folder / f"{stage}.pth", folder / f"{stage}.run"
        stage_folder.mkdir()
        paths = {"out": str(out), "folder": str(stage_folder)}
        stage_job = job | job["stages"][stage] | parent | {"stage": stage} | paths
        metrics = module.main(planned(job["module"], stage_job, log_rows=10))
        for name in ("tokens", "seconds"):
            results[name].append(metrics.get(f"all_{name}", metrics[name]))
        # Of an answer in SFT only the loss is asked for.
        max_new_tokens = job["max_new_tokens"] if stage == "distill" else 1
        heldout = Path(stage_job["heldout"])
        scores = scored(out, heldout, job["tokenizer_dir"], max_new_tokens)
        results["scored"].append(len(heldout.read_bytes().splitlines()))
        results |= {name: scores[name]["value"] for of_stage, name in METRICS.values() if of_stage == stage}
        if stage == "distill":
            results["chance_level"] = scores["correct"]["chance_level"]
        parent = {"parent": str(out)}
    return results


def scored(checkpoint: Path, heldout: Path, tokenizer_dir: str, max_new_tokens: int) -> dict[str, dict]:
    """Return the metrics of a file of rows, as eval_model.py --score computes them."""
    settings = records.EvalSettings(rows=0, max_new_tokens=max_new_tokens)
    (model, meta), tokenizer = load_model(checkpoint), load_tokenizer(tokenizer_dir)
    files, folder = records.read_files([heldout], settings.rows), checkpoint.with_suffix(".scores")
    results, _ = evaluate.score_files(model, tokenizer, files, folder, settings, 32, meta["weights"])
    return results[heldout.name]["metrics"]


def table(results: dict[str, list[dict]]) -> list[str]:
    """Format mean and standard deviation over the seeds."""
    lines = [["", *METRICS, "tokens read", "seconds"]]
    notes = {}
    for name, runs in results.items():
        if failed := compare.failure(runs):
            lines.append([name, failed, *[""] * (len(lines[0]) - 2)])
            continue
        cells = []
        for _, metric in METRICS.values():
            form = "{:.1%}" if evaluate.is_proportion(metric) else "{:.3f}"
            cells.append(compare.mean([run[metric] for run in runs], form))
        for key in ("tokens", "seconds"):
            means = [statistics.mean(values) for values in zip(*(run[key] for run in runs), strict=True)]
            cells.append(" + ".join(f"{value:,.0f}" for value in means))
        lines.append([name, *cells])
        notes |= runs[0]
    if not notes:
        return compare.table(lines)
    counts = ", ".join(map(str, notes["scored"]))
    chance = f"The most frequent answer alone would be correct in {notes['chance_level']:.1%}."
    return [*compare.table(lines), "", f"Scored on {counts} held-out rows. {chance}"]


def jobs_of(args: argparse.Namespace, folder: Path) -> list[tuple[str, dict]]:
    """Return (contender, its job for this module's main), seed by seed."""
    tokenizer, stages = load_tokenizer(args.tokenizer_dir), {}
    for number, (stage, file) in enumerate(zip(STAGES, args.data, strict=True)):
        cache = rows.open_rows(Path(file), tokenizer, Path(args.cache_dir), os.cpu_count() or 1)
        heldout = folder / f"{stage}.jsonl"
        write_heldout(Path(file), heldout, args.val_fraction, args.answers)
        stages[stage] = {
            "cache": str(cache.folder.resolve()),
            "heldout": str(heldout),
            "tokens": args.tokens[number] if args.tokens else 0,
            "seconds": args.seconds[number] if args.seconds else 0,
        }
    dtype = str(runtime.resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    shared = compare.select(args, "max_seq_len", "batch_size", "val_fraction", "max_new_tokens") | {
        "shape": compare.select(args, "dim", "n_layers", "n_heads", "n_kv_heads"),
        "device": "cpu",
        "dtype": dtype,
        "tokenizer_dir": str(Path(args.tokenizer_dir).resolve()),
        "epochs": 1,
        "eval_step": 0,
        "rows": 0,
        "accumulation": 1,
        "loader_processes": 0,
        "grouped": False,
    }
    contenders = [(f"ours {flags}", "benchmarks.ours", args.rates, flags) for flags in args.ours]
    contenders += [(peer, MODULES[peer], args.peer_rates, "") for peer in args.peers]
    jobs = []
    for seed in range(args.seeds):
        for name, module, rates, flags in contenders:
            own = {}
            for stage, rate in zip(STAGES, rates, strict=True):
                own[stage] = stages[stage] | {"learning_rate": rate, "flags": f"--learning_rate {rate} {flags}"}
            jobs.append((name, shared | {"module": module, "stages": own, "seed": 42 + seed}))
    return jobs


def run_all(argv: list[str] | None = None) -> None:
    args = parse(argv)
    before = compare.machine()
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(args, Path(folder))
        results = compare.side_by_side(jobs, "benchmarks.quality", alone=args.seconds is not None)
    terms = "equal time" if args.seconds else "equal tokens"
    heading = f"quality, {terms}, {args.n_layers} layers x {args.dim}, rows of {args.max_seq_len}"
    compare.publish(heading, "benchmarks.quality", argv, table(results), Path(args.results), before)


if __name__ == "__main__":
    compare.entry(run_all, main)
