"""Training, ours and the peers in turn: real (non-padding) tokens a second on the same rows, and peak memory.

    python -m benchmarks.train                                          # the bundled sample, default shape
    python -m benchmarks.train --data_path sft_512.jsonl --rounds 5     # or a finished token cache folder
    python -m benchmarks.train --device cuda                            # one GPU, under five minutes
    python -m benchmarks.train --seconds 200 --data_path pretrain.jsonl --dim 256 --n_layers 6 --batch_size 16
    python -m benchmarks.train --ours= --ours=--compile --ours="--optimizer muon"       # three ways of ours
    python -m benchmarks.train --grow       # speed and memory against width, depth, row length, batch, threads
    python -m benchmarks.train --profile    # the share of each part, and the distance to a plain matmul

With --seconds every contender trains that long from fresh weights, held-out bits per byte are taken twenty times on the
way with the clock stopped, and the table says how far each came and when it reached --target_bpb. Compiling is not on
the clock.

The peers are transformers.Trainer with LlamaForCausalLM, once padding random rows to the longest of a batch and once
with rows grouped by length, and `original`: the method of the original scripts (benchmarks/original.py).
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks import compare, growth, ours, parts, rows
from engine import cli
from engine.corpus.token_cache import TokenCache
from engine.machine import runtime
from engine.options import DTYPES, SAMPLE
from engine.tokenizer import load_tokenizer

PEERS = ("original", "trainer", "trainer_grouped")
MODULES = {"original": "benchmarks.original", "trainer": "benchmarks.hf_trainer"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--data_path", default=SAMPLE / "pretrain.jsonl", help="one JSONL file, or a token cache folder")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="of ours and of Trainer; original is fp32")
    add("--batch_size", type=int, default=0, help="rows in a step, for everybody (0: 8, on cuda 128)")
    add("--rounds", type=int, default=0, help="times each contender is run (0: 3; 2 on cuda; 1 with --seconds)")
    add("--rows", type=int, default=0, help="documents of a round (0: 50 batches, the most Trainer groups lengths in)")
    add("--peers", nargs="*", choices=PEERS, help="default: all; with --seconds only original")
    add("--ours", action="append", help="flags for our stage, as --ours='--a 1 --b'; once for each way")
    add("--seconds", type=float, default=0, help="train this long and compare held-out bits per byte (0: speed only)")
    add("--target_bpb", type=float, default=0, help="bits per byte to time (0: what the last peer reaches)")
    add("--peer_learning_rate", type=float, default=5e-4, help="AdamW's rate in the peers")
    add("--threads", type=int, default=0, help="threads of each contender (0: as torch decides)")
    add("--grow", action="store_true", help="how speed and memory of ours grow; table and benchmarks/growth.png")
    add("--profile", action="store_true", help="where the time of ours goes")
    add("--seed", type=int, default=42, help="of weights and rows; each round adds its number")
    add("--num_workers", type=int, default=0, help="tokenizing processes (0: one a core)")
    compare.add_model(parser, dim=512, n_layers=8, n_heads=8)
    args = parser.parse_args(argv)
    cuda = runtime.resolve_device(args.device).type == "cuda"
    args.batch_size = args.batch_size or (128 if cuda else 8)
    speed_rounds = 2 if cuda else 3
    args.rounds = args.rounds or (1 if args.seconds else speed_rounds)
    args.rows = args.rows or 50 * args.batch_size
    args.ours = args.ours or ["--compile" if cuda else ""]
    if args.peers is None:
        args.peers = ["original"] if args.seconds else list(PEERS)
    return args


def base_job(args: argparse.Namespace, cache: TokenCache, stage: str) -> dict:
    """Return the part of a job that is the same for every contender."""
    device = runtime.resolve_device(args.device)
    return compare.select(args, "max_seq_len", "batch_size", "threads", "seconds", "seed") | {
        "cache": str(cache.folder.resolve()),
        "stage": stage,
        "device": device.type,
        "dtype": str(runtime.resolve_dtype(args.dtype, device)).removeprefix("torch."),
        "shape": compare.select(args, "dim", "n_layers", "n_heads", "n_kv_heads"),
        "val_fraction": 0.0,
        "tokenizer_dir": str(Path(args.tokenizer_dir).resolve()),
        "steps": 0,
        "tokens": 0,
        "warmup_iters": 2,
        "epochs": 1,
        "log_step": 1,
        "eval_step": 0,
        "rows": 0,
        "flags": "",
    }


def contenders(args: argparse.Namespace, job: dict) -> compare.Jobs:
    """Return the jobs of a round; ours first."""
    jobs: compare.Jobs = {}
    cuda = job["device"] == "cuda"
    for flags in args.ours:
        # A GPU is so fast that one epoch of the rows is no time, and so far ahead of Python that a log row holds it up.
        gpu = {"epochs": 10, "log_step": 5} if cuda and not args.seconds else {}
        jobs[f"ours {flags}".strip()] = "benchmarks.ours", job | gpu | {"flags": flags}
    for peer in args.peers:
        more = {"learning_rate": args.peer_learning_rate, "grouped": peer == "trainer_grouped"}
        if peer == "original":
            # One whole step of eight micro-batches and one to warm up; in a race to a loss each batch is a step, which
            # is better for it than eight times fewer steps.
            more |= {"accumulation": 1 if args.seconds else 8, "loader_processes": 4 if cuda else 0}
            more["rows"] = 0 if args.seconds else 9 * args.batch_size
        jobs[peer] = MODULES[peer.removesuffix("_grouped")], job | more
    return jobs


def speed(args: argparse.Namespace, cache: TokenCache, job: dict, folder: Path) -> list[str]:
    """Return the table of real tokens a second; each round has rows of its own."""

    def round_jobs(number: int) -> compare.Jobs:
        documents = rows.spread_by_length(cache, cache.split(0)[0], args.rows, args.seed + number)
        part = rows.write_part(cache, documents, folder / f"rows-{number}")
        return contenders(args, job | {"cache": str(part), "seed": args.seed + number})

    results = compare.in_turn(round_jobs, args.rounds)
    columns = {"real tokens/s": "tokens_per_second", "peak memory, MiB": "memory"}
    columns["waiting for data"] = "data_wait_fraction"
    if any(metrics.get("mfu") for metrics in next(iter(results.values()))):
        columns["MFU"] = "mfu"
    return compare.compared(results, columns, "tokens_per_second")


def planned(module: str, job: dict, log_rows: int) -> dict:
    """Return the job with as many steps as fit into its seconds or tokens, by a short run before.

    `original` goes by the clock, or counts, itself.
    """
    if module == MODULES["original"]:
        return job
    limits = {"steps": 40, "warmup_iters": 2, "log_step": 1, "eval_step": 0, "seconds": 0, "tokens": 0}
    trial = compare.run(module, {name: value for name, value in job.items() if name != "out"} | limits)
    if "failed" in trial:
        raise ValueError(f"{module}: {trial['failed']}")
    # A little less than there is time for: the schedule should have come to its end within the budget.
    steps = 0.97 * job["seconds"] / trial["step_seconds"] if job["seconds"] else job["tokens"] / trial["step_tokens"]
    steps = max(log_rows, round(steps))
    return job | {"steps": steps, "warmup_iters": max(1, steps // 20), "log_step": max(1, steps // log_rows)}


def race(args: argparse.Namespace, job: dict) -> list[str]:
    """Return the table of held-out bits per byte after --seconds."""
    if job["stage"] != "pretrain":
        raise ValueError('--seconds compares bits per byte of text: --data_path must hold rows with "text"')
    if not args.peers:
        raise ValueError("--seconds needs a peer")

    def round_jobs(number: int) -> compare.Jobs:
        jobs = contenders(args, job | {"seed": args.seed + number})
        for name, (module, unplanned) in jobs.items():
            plan = planned(module, unplanned, log_rows=20)
            jobs[name] = module, plan | {"eval_step": plan["log_step"], "val_fraction": args.val_fraction}
        return jobs

    results = compare.in_turn(round_jobs, args.rounds)
    return race_table(results, args.seconds, args.target_bpb)


def race_table(results: dict[str, list[dict]], budget: float, target: float) -> list[str]:
    """Compare what was reached within `budget` seconds, 2 % over included; without a target, by the last peer."""
    for round_metrics in zip(*results.values(), strict=True):
        succeeded = [metrics for metrics in round_metrics if "failed" not in metrics]
        for metrics in succeeded:
            within = [point for point in metrics["history"] if point[0] <= 1.02 * budget] or metrics["history"][:1]
            metrics["used"], metrics["read"], metrics["bpb"] = within[-1]
        goal = target or round_metrics[-1].get("bpb", 0.0)
        for metrics in succeeded:
            metrics["reached"] = next((seconds for seconds, _, bpb in metrics["history"] if bpb <= goal), None)
    columns = {"held-out bits/byte": "bpb", "at second": "used", "real tokens read": "read"}
    columns |= {"peak memory, MiB": "memory", f"seconds to {target or 'the last row'}": "reached"}
    return compare.compared(results, columns, "bpb")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer_dir)
    path, workers = Path(args.data_path), args.num_workers or os.cpu_count()
    cache, stage = rows.open_rows(path, tokenizer, Path(args.cache_dir), workers), rows.stage_of(path)
    job = base_job(args, cache, stage)
    before = compare.machine(job["device"])
    with tempfile.TemporaryDirectory() as folder:
        if stage == "SFT":
            job["parent"] = str(ours.one_step(job["shape"], args.tokenizer_dir, Path(folder) / "parent"))
        if args.grow:
            title, lines = "growth", growth.measure(args, job)
        elif args.profile:
            title, lines = "profile", parts.measure(args, job)
        elif args.seconds:
            title, lines = f"race of {args.seconds:g} s", race(args, job)
        else:
            title, lines = "training speed", speed(args, cache, job, Path(folder))
    shape = f"{job['dtype']} on {job['device']}, {args.n_layers} layers x {args.dim}, rows of {args.max_seq_len}"
    heading = f"{title}, {path.name}, {shape}, batch {args.batch_size}"
    compare.publish(heading, "benchmarks.train", argv, lines, Path(args.results), before)


if __name__ == "__main__":
    cli.run(main)
