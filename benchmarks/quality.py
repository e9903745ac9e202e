"""Quality on equal terms: ours and the peers from fresh weights to distillation, equal tokens or equal time a stage.

    python -m benchmarks.quality --data pretrain.jsonl sft_512.jsonl r1_1024.jsonl --tokens 300e3 100e3 100e3
    python -m benchmarks.quality --data pretrain.jsonl sft_512.jsonl r1_1024.jsonl --seconds 120 60 60

Every contender has the same shape, tokenizer, rows and held-out rows, and starts a stage from what its own last stage
left. What it leaves is a checkpoint with our names, scored as `eval_model.py --score` does: bits per byte after
pretraining, loss on answers after SFT, well-formed and correct answers after distillation. With --tokens as many runs
as there are cores go on at once, one thread each; with --seconds one at a time. Tokenising, compiling and scoring are
not on the clock.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import compare, rows
from benchmarks.train import MODULES, planned
from engine.checkpoint.weights import load_model
from engine.corpus import jsonl
from engine.corpus.held_out import held_out_hashes, line_hash
from engine.machine import runtime
from engine.options import SAMPLE
from engine.score import evaluate, records
from engine.tokenizer import load_tokenizer

STAGES = tuple(rows.DATASETS)
FIGURES = {  # column: (stage, figure of its held-out rows)
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


def write_heldout(path: Path, out: Path, val_fraction: float, count: int, seed: int = 0) -> None:
    """`count` rows, drawn at random, of those that every run holds out of a file."""
    found = [line for _, line in jsonl.read_lines(path)]
    hashes = np.array([line_hash(line) for line in found], dtype=np.uint64)
    kept = np.flatnonzero(np.isin(hashes, held_out_hashes([hashes], val_fraction)))
    chosen = np.random.default_rng(seed).permutation(kept)[:count]
    out.write_bytes(b"".join(found[number].rstrip() + b"\n" for number in sorted(chosen)))


def main(job: dict) -> dict:
    """One contender's three stages, and the scores of each."""
    found, folder, module, parent = {"tokens": [], "seconds": [], "scored": []}, Path(job["folder"]), job["module"], {}
    for stage in STAGES:
        out, place = folder / f"{stage}.pth", folder / f"{stage}.run"
        place.mkdir()
        one = job | job["stages"][stage] | parent | {"stage": stage, "out": str(out), "folder": str(place)}
        figures = importlib.import_module(module).main(planned(module, one, log_rows=10))
        for name in ("tokens", "seconds"):
            found[name].append(figures.get(f"all_{name}", figures[name]))
        # Of an answer in SFT only the loss is asked for.
        said = job["max_new_tokens"] if stage == "distill" else 1
        scores = scored(out, Path(one["heldout"]), job["tokenizer_dir"], said)
        found["scored"].append(len(Path(one["heldout"]).read_bytes().splitlines()))
        found |= {name: scores[name]["value"] for of, name in FIGURES.values() if of == stage}
        found |= {"chance_level": scores["correct"]["chance_level"]} if stage == "distill" else {}
        parent = {"parent": str(out)}
    return found


def scored(checkpoint: Path, heldout: Path, tokenizer_dir: str, max_new_tokens: int) -> dict[str, dict]:
    """The figures of a file of rows, as eval_model.py --score has them."""
    settings = records.EvalSettings(rows=0, max_new_tokens=max_new_tokens)
    model, tokenizer = load_model(checkpoint)[0], load_tokenizer(tokenizer_dir)
    results, _ = evaluate.score_files(model, tokenizer, [heldout], checkpoint.with_suffix(".scores"), settings, 32)
    return results[heldout.name]["metrics"]


def table(found: dict[str, list[dict]]) -> list[str]:
    """Mean and standard deviation over the seeds."""
    lines = [["", *FIGURES, "tokens read", "seconds"]]
    for name, runs in found.items():
        if failed := next((one["failed"] for one in runs if "failed" in one), None):
            lines.append([name, f"not measured: {failed}", *[""] * (len(lines[0]) - 2)])
            continue
        forms = {figure: "{:.1%}" if evaluate.is_proportion(figure) else "{:.3f}" for _, figure in FIGURES.values()}
        cells = [compare.mean([one[figure] for one in runs], form) for figure, form in forms.items()]
        for what in ("tokens", "seconds"):
            each = [statistics.mean(one[what][stage] for one in runs) for stage in range(len(STAGES))]
            cells.append(" + ".join(f"{value:,.0f}" for value in each))
        lines.append([name, *cells])
    chances = {one["chance_level"] for runs in found.values() for one in runs if "chance_level" in one}
    counts = next((one["scored"] for runs in found.values() for one in runs if "scored" in one), [])
    told = f"Scored on {', '.join(map(str, counts))} held-out rows."
    if chances:
        told += f" The most frequent answer alone would be correct in {max(chances):.1%}."
    return [*compare.table(lines), "", told]


def jobs_of(args: argparse.Namespace, folder: Path) -> list[tuple[str, dict]]:
    """(contender, its job for this module's main), seed by seed."""
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
    ways = [(f"ours {words}", "benchmarks.ours", args.rates, words) for words in args.ours]
    ways += [(peer, MODULES[peer], args.peer_rates, "") for peer in args.peers]
    jobs = []
    for seed in range(args.seeds):
        for name, module, rates, words in ways:
            own = {
                stage: stages[stage] | {"learning_rate": rate, "flags": f"--learning_rate {rate} {words}"}
                for stage, rate in zip(STAGES, rates, strict=True)
            }
            jobs.append((name, shared | {"module": module, "stages": own, "seed": 42 + seed}))
    return jobs


def run_all(argv: list[str] | None = None) -> None:
    args = parse(argv)
    before = compare.machine()
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(args, Path(folder))
        found = compare.side_by_side(jobs, "benchmarks.quality", alone=args.seconds is not None)
    terms = "equal time" if args.seconds else "equal tokens"
    heading = f"quality, {terms}, {args.n_layers} layers x {args.dim}, rows of {args.max_seq_len}"
    words = sys.argv[1:] if argv is None else argv
    compare.publish(heading, "benchmarks.quality", words, table(found), Path(args.results), before)


if __name__ == "__main__":
    compare.entry(run_all, main)
