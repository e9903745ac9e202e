"""Read and check run.pt of a training state: all that resuming needs except tensors of the model's size."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.checkpoint.weights import read_tensors

STATE_VERSION = 5  # raise it when an older state cannot be continued

# Keys and types of each part, checked before any of it is used.
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
    """The progress of a run and what it was started with."""

    resume_key: dict[str, Any]  # the settings that must be equal for a run to be resumed
    batch: dict[str, int]  # how a step's rows were divided
    run_id: str  # which run this is: the .json of its weights says it too
    tracker_id: str | None  # at the tracking service
    progress: dict[str, Any]  # loop.Progress, without tensors
    scaler: dict[str, Any]
    ranks: list[dict[str, Any]]  # of each process: "random" and "window_sums"
    compiled: bool  # a resumed run does what its first part did
    version: int = STATE_VERSION


def read_info(state: Path) -> RunInfo:
    """Read run.pt of a state.

    Raises:
        ValueError: Another version, or a key that is missing, unexpected or of another type.
    """
    file = state / "run.pt"
    content = read_tensors(file)
    if content.get("version") != STATE_VERSION:
        raise ValueError(
            f"{state}: a state of another version of this program ({content.get('version', 1)}, this one continues "
            f"{STATE_VERSION}). Finish it with the version that began it, or start again with --name or --overwrite"
        )
    invalid = content.keys() ^ {field.name for field in fields(RunInfo)}
    for name, types in REQUIRED_KEYS.items():
        part = content.get(name)
        if isinstance(part, dict):
            invalid |= {f"{name}.{key}" for key, type_ in types.items() if not isinstance(part.get(key), type_)}
        else:
            invalid.add(name)
    ranks = content.get("ranks")
    if not isinstance(ranks, list) or not ranks or not all(map(_is_rank, ranks)):
        invalid.add("ranks")
    if not isinstance(content.get("compiled"), bool):
        invalid.add("compiled")
    if invalid:
        raise ValueError(f"{file}: {', '.join(sorted(invalid))} missing or not as this program writes it")
    return RunInfo(**content)


def _is_rank(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= {"random", "window_sums"}
