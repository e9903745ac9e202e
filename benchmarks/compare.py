"""Run contenders in turn, A B A B, each in a process of its own, and compare them in a table.

A machine's speed drifts by more than the differences to be shown, so only metrics of the same round are divided by each
other; read the median and the range of these ratios.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from engine import cli
from engine.flags import ROOT, Help

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate")

Jobs = dict[str, tuple[str, dict]]  # contender -> (module with main(job) -> metrics, job)

# ----------------------------------------------------------------------------------------------- processes


def run(module: str, job: dict) -> dict:
    """Return the metrics of `module`.main(job) in a new process, or {"failed": why}; it may write in job["folder"].

    `threads` in the job (0: as it comes) limits its threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "job.json"), Path(folder, "metrics.json")
        request.write_text(json.dumps(job | {"folder": folder}), encoding="utf-8")
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        if job.get("device") == "cuda":
            environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several GPUs Trainer would use all
        if job.get("threads"):
            environment["OMP_NUM_THREADS"] = str(job["threads"])
        command = [sys.executable, "-m", module, str(request), str(answer)]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
        if process.returncode or not answer.is_file():
            return {"failed": (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1].strip()}
        return json.loads(answer.read_text(encoding="utf-8"))


def work(main: Callable[[dict], dict]) -> None:
    """Read the job that `run` wrote, do it, write its metrics and the peak of memory."""
    request, answer = map(Path, sys.argv[1:])
    try:
        metrics = main(json.loads(request.read_text(encoding="utf-8")))
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    answer.write_text(json.dumps(metrics | peak_memory()), encoding="utf-8")


def entry(main: Callable[[], None], worker: Callable[[dict], dict]) -> None:
    """Start a program that is its own contender: `worker` if `run` gave it a job, else the command line."""
    if sys.argv[1:2] and Path(sys.argv[1]).name == "job.json":
        work(worker)
    else:
        cli.run(main)


def peak_memory() -> dict:
    """Return {"memory": MiB}: of the GPU where one was used, else of this process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return {"memory": torch.cuda.max_memory_allocated() / 2**20}
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would begin with the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return {"memory": int(line.split()[1]) / 2**10}
    import resource

    unit = 1 if platform.system() == "Darwin" else 2**10
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}


def in_turn(jobs: Callable[[int], Jobs], rounds: int) -> dict[str, list[dict]]:
    """Run the jobs of every round one after another; return {contender: its metrics of every round}."""
    results: dict[str, list[dict]] = {}
    for number in range(rounds):
        for name, (module, job) in jobs(number).items():
            metrics = run(module, job)
            results.setdefault(name, []).append(metrics)
            print(f"round {number + 1} of {rounds}: {name}: {_summary(metrics)}", flush=True)
    return results


def side_by_side(jobs: list[tuple[str, dict]], module: str, alone: bool = False) -> dict[str, list[dict]]:
    """Run as many jobs at once as there are cores, one thread each; return {name: their metrics}.

    Their times are no measure unless `alone`: one at a time, with all cores.
    """
    results: dict[str, list[dict]] = {}
    with ThreadPoolExecutor(1 if alone else os.cpu_count()) as pool:
        runs = pool.map(lambda job: run(module, job[1] | {"threads": 0 if alone else 1}), jobs)
        for number, ((name, _), metrics) in enumerate(zip(jobs, runs, strict=True), 1):
            results.setdefault(name, []).append(metrics)
            print(f"{number} of {len(jobs)}: {name}: {_summary(metrics)}", flush=True)
    return results


def _summary(metrics: dict) -> str:
    shown = {key: value for key, value in metrics.items() if isinstance(value, (int, float, str))}
    parts = [f"{key} {_short(value)}" for key, value in shown.items()]
    if metrics.get("history"):
        parts.append(f"at the end {metrics['history'][-1]}")
    return ", ".join(parts)


def failure(metrics: list[dict]) -> str | None:
    """Return why a contender has no metrics, if one of its runs failed."""
    return next((f"not measured: {run['failed']}" for run in metrics if "failed" in run), None)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark; --help shows the defaults."""
    return argparse.ArgumentParser(description=doc, formatter_class=Help, allow_abbrev=False)


def select(args: argparse.Namespace, *names: str) -> dict:
    """Select some of the flags, by name."""
    return {name: getattr(args, name) for name in names}


def add_model(parser: argparse.ArgumentParser, *, dim: int, n_layers: int, n_heads: int) -> None:
    """Add the flags of the model that is trained, and of its files."""
    add = parser.add_argument
    add("--dim", type=int, default=dim, help="width")
    add("--n_layers", type=int, default=n_layers, help="blocks")
    add("--n_heads", type=int, default=n_heads, help="query heads")
    add("--n_kv_heads", type=int, default=2, help="key-value heads")
    add("--max_seq_len", type=int, default=512, help="tokens in a row")
    add("--val_fraction", type=float, default=0.005, help="share of the rows held out, at least 64 rows")
    add("--tokenizer_dir", default=ROOT / "spongebob_tokenizer", help="folder with tokenizer.json")
    add("--cache_dir", default=ROOT / "cache", help="folder of the token caches")
    add("--results", default=RESULTS, help="file the table is appended to")


# ------------------------------------------------------------------------------------------------- metrics


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Iterable[float]) -> str:
    """Format values as `median (smallest to largest)`, or as a dash without values."""
    values = sorted(map(float, values))
    if len(values) < 2:
        return _short(values[0]) if values else "-"
    return f"{_short(statistics.median(values))} ({_short(values[0])} to {_short(values[-1])})"


def mean(values: list[float], form: str) -> str:
    """Format values as `mean ± standard deviation`, each written in `form`."""
    deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + deviation


def metrics_of(results: list[dict], key: str) -> list[float]:
    return [metrics[key] for metrics in results if metrics.get(key) is not None]


def ratios(ours: list[dict], peer: list[dict], key: str) -> list[float]:
    """Divide ours by the peer, round by round; rounds in which one of them has no figure are skipped."""
    pairs = [(a.get(key), b.get(key)) for a, b in zip(ours, peer, strict=True)]
    return [a / b for a, b in pairs if a is not None and b]


def compared(results: dict[str, list[dict]], columns: dict[str, str], key: str) -> list[str]:
    """Make a line for each contender: its `columns` (title -> figure), then the ratio of the first contender's `key`.

    Contenders without metrics say why.
    """
    first = next(iter(results))
    lines = [["", *columns, f"{first} / this, of {key.replace('_', ' ')}"]]
    for name, metrics in results.items():
        if failed := failure(metrics):
            lines.append([name, *["-"] * len(columns), failed])
            continue
        times = spread(ratios(results[first], metrics, key)) if name != first else "1"
        lines.append([name, *(spread(metrics_of(metrics, column)) for column in columns.values()), times])
    return table(lines)


def table(lines: list[list[str]]) -> list[str]:
    """Format lines of equal width as Markdown; the first one is the heading."""
    lines = [[cell.replace("|", "/") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    heading, *body = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return [heading, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body]


# ------------------------------------------------------------------------------------------------- results


def machine(device: str = "cpu") -> str:
    """Describe the machine and the packages in one line. Call it first: the load should be that of others."""
    gpu = ""
    if device == "cuda":
        import torch

        gpu = f"{torch.cuda.get_device_name()}, "
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{gpu}{cores} cores of {cpu}{load}; {platform.system()}; {', '.join(versions)}"


def commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def publish(title: str, module: str, argv: list[str] | None, lines: list[str], path: Path, before: str) -> None:
    """Print the lines and append them to `path`, under the command, the commit and `before` (see `machine`)."""
    print("\n".join(["", *lines]))
    argv = sys.argv[1:] if argv is None else argv
    # Names of files without their folders.
    command = " ".join(shlex.quote(Path(part).name if Path(part).is_absolute() else part) for part in argv)
    if not path.exists():
        path.write_text("# Measured\n", encoding="utf-8")
    heading = f"## {title}, {datetime.now():%Y-%m-%d %H:%M}, commit {commit()}"
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(["", heading, "", f"`python -m {module} {command}`", "", before, "", *lines, ""]))
    print(f"\nappended to {path}")
