"""This project as its users run it: the stage's own main() with flags, and the log that it leaves."""

import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import distill
import pretrain
import SFT
from benchmarks import compare
from engine.files import read_log
from engine.flags import ROOT
from engine.options import SAMPLE

STAGES = {"pretrain": pretrain, "SFT": SFT, "distill": distill}


def main(job: dict) -> dict:
    """Train as the job says; metrics are those between the first row of metrics.jsonl and the last."""
    folder = Path(job["folder"])
    flags = {
        "data_path": job["cache"],
        "save_dir": folder,
        "tokenizer_dir": job["tokenizer_dir"],
        "device": job["device"],
        "dtype": job["dtype"],
        "seed": job["seed"],
        "max_seq_len": job["max_seq_len"],
        "batch_size": job["batch_size"],
        "accumulation_steps": 1,
        "warmup_iters": job["warmup_iters"],
        "val_fraction": job["val_fraction"],
        "log_step": job["log_step"],
        "eval_step": job["eval_step"],
        "save_step": 0,
    }
    flags["max_steps" if job["steps"] else "epochs"] = job["steps"] or job["epochs"]
    flags.update({"init_from": job["parent"]} if "parent" in job else job["shape"])
    STAGES[job["stage"]].main([*argv_of(flags), *shlex.split(job["flags"])])
    if "out" in job:
        for suffix in (".pth", ".json"):
            shutil.copyfile(folder / f"{job['stage']}{suffix}", Path(job["out"]).with_suffix(suffix))
    return metrics(next(folder.glob("*.metrics.jsonl")))


def argv_of(flags: dict) -> list[str]:
    argv = []
    for name, value in flags.items():
        argv += [f"--{name}", str(value)]
    return argv


def metrics(log: Path) -> dict:
    rows = read_log(log)
    validated = [row for row in rows if "val_bits_per_byte" in row]
    history = [[row.get("seconds", 0.0), row.get("tokens", 0), row["val_bits_per_byte"]] for row in validated]
    timed = [row for row in rows if "tokens_per_second" in row]
    if len(timed) < 2:
        raise ValueError(f"only {len(timed)} rows in the log, the first warms up: more --rows, or fewer a batch")
    first, last = timed[0], timed[-1]
    tokens, seconds = last["tokens"] - first["tokens"], last["seconds"] - first["seconds"]
    speed = {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": last.get("mfu"),
        "data_wait_fraction": statistics.fmean(row["data_wait_fraction"] for row in timed[1:]),
    }
    steps = last["step"] - first["step"]
    whole = {"all_tokens": last["tokens"], "all_seconds": last["seconds"]}  # the warm-up too
    return speed | whole | {"step_seconds": seconds / steps, "step_tokens": tokens / steps, "history": history}


def one_step(shape: dict, tokenizer_dir: str, folder: Path) -> Path:
    """Train a checkpoint of a shape for one step on the bundled sample, for benchmarks that need only its size."""
    flags = shape | {
        "save_dir": folder,
        "cache_dir": folder / "cache",
        "tokenizer_dir": tokenizer_dir,
        "device": "cpu",
        "data_path": SAMPLE / "pretrain.jsonl",
        "max_steps": 1,
        "warmup_iters": 0,
        "batch_size": 1,
        "accumulation_steps": 1,
        "val_fraction": 0,
    }
    command = [sys.executable, "pretrain.py", *argv_of(flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pretrain.py: {done.stderr.strip().splitlines()[-1]}")
    return folder / "pretrain.pth"


if __name__ == "__main__":
    compare.work(main)
