"""run.pt of a state: what resuming needs beside tensors of the model's size, checked when it is read."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.checkpoint.weights import read_tensors

STATE_VERSION = 5  # raise it when an older state cannot be continued

# What must be there, and of which kind, before anything is made of it.
REQUIRED_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "resume_key": {"learning_rate": float, "schedule": str, "steps": int, "warmup_iters": int},
    "batch": {"rows_per_step": int, "batch_size": int, "accumulation_steps": int, "world_size": int},
    "progress": {
        "step": int,
        "tokens": int,
        "seconds": float,
        "initial_validation": dict,
        "validation": dict,
        "last_validation_step": int,
        "skipped": int,
        "consecutive_skips": int,
        "window_counts": dict,
        "window_seconds": float,
        "window_data_wait": float,
    },
    "scaler": {},
}


@dataclass(frozen=True)
class RunInfo:
    """Where a run stands and what it was started with."""

    resume_key: dict[str, Any]  # the settings that must be equal for a run to be resumed
    batch: dict[str, int]  # how a step's rows were divided
    run: str  # which run this is: the .json of its weights says it too
    tracker_id: str | None  # at the tracking service
    progress: dict[str, Any]  # loop.Progress, without tensors
    scaler: dict[str, Any]
    ranks: list[dict[str, Any]]  # of each process: "random" and "window_sums"
    compiled: bool  # a resumed run does what its first part did
    version: int = STATE_VERSION


def read_info(state: Path) -> RunInfo:
    """ValueError names what is not as this program writes it."""
    file = state / "run.pt"
    content = read_tensors(file)
    if content.get("version") != STATE_VERSION:
        raise ValueError(
            f"{state}: a state of another version of this program ({content.get('version', 1)}, this one continues "
            f"{STATE_VERSION}). Finish the run with the version that began it, or start anew with --name or --overwrite"
        )
    odd = list(content.keys() ^ {one.name for one in fields(RunInfo)})
    for name, keys in REQUIRED_KEYS.items():
        part = content.get(name)
        if not isinstance(part, dict):
            odd.append(name)
        else:
            odd += [f"{name}.{key}" for key, kind in keys.items() if not isinstance(part.get(key), kind)]
    ranks = content.get("ranks")
    whole = isinstance(ranks, list) and all(
        isinstance(one, dict) and one.keys() >= {"random", "window_sums"} for one in ranks
    )
    if not ranks or not whole:
        odd.append("ranks")
    if not isinstance(content.get("compiled"), bool):
        odd.append("compiled")
    if odd:
        raise ValueError(f"{file}: {', '.join(sorted(set(odd)))} missing or not as this program writes it")
    return RunInfo(**content)
