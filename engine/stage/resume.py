"""--resume: find the state that is continued, and restore it. A fresh run begins here, too, and looks the same.

`begin` returns a Start: for a resumed run with its state, for a fresh one without. The rest of a stage asks the Start
and need not know which of them it has.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from engine import optim
from engine.checkpoint import training_state
from engine.checkpoint.run_info import RunInfo, read_info
from engine.checkpoint.trained_rows import TrainedRows
from engine.checkpoint.weights import full_state_dict, read_meta, save_weights
from engine.console import print0
from engine.files import first_line, remove_temp_files
from engine.flags import Args, check_path
from engine.log.tracker import continue_log, rows_until
from engine.loop import Progress, Run
from engine.loss import Counts
from engine.machine import parallel, rng
from engine.machine.runtime import Runtime
from engine.options import Output, Training
from engine.stage.resume_key import check_unchanged


@dataclass(frozen=True)
class ResumePoint:
    """A state to continue from."""

    path: Path
    info: RunInfo

    @property
    def step(self) -> int:
        """Optimizer steps that it has done."""
        return self.info.progress["step"]


@dataclass(frozen=True)
class Start:
    """Start of a run, fresh or resumed.

    Args:
        output: The user's flags.
        rt: Ranks.
        run_id: Names this run in its state and in the .json of its weights, to tell it from another of the same name.
        rows_per_step: Rows of max_seq_len tokens in an optimizer step, over all ranks.
        point: The state; None for a fresh run.
    """

    output: Output
    rt: Runtime
    run_id: str
    rows_per_step: int
    point: ResumePoint | None = None

    @property
    def log(self) -> Path:
        """Log of the run that is continued, also where it had another name; a fresh run's own."""
        if self.point is None or _is_own(self.point.path.parent, self.output.states):
            return self.output.metrics
        return self.point.path.parent.with_suffix(".metrics.jsonl")

    @property
    def tracker_id(self) -> str | None:
        """Id of the run at the tracking service."""
        return self.point.info.tracker_id if self.point else None

    def warmup(self, training: Training, steps: int) -> int:
        """Return the steps of warm-up: as typed, else the default share of the run as it was first planned."""
        if training.warmup_iters is not None:
            return training.warmup_iters
        if self.point:  # also of a run that was made longer
            return self.point.info.resume_key["warmup_iters"]
        return optim.default_warmup_steps(steps, training.warmup_parts)

    def compiling(self, typed: bool | None, micro_batches: int) -> parallel.CompileDecision:
        """Decide on torch.compile: as typed, else as in the run's first part, else as the main process finds right."""
        if typed is not None:
            return parallel.CompileDecision(typed, "as typed")
        if self.point:
            return parallel.CompileDecision(self.point.info.compiled, "as in the run's first part")
        return self.rt.broadcast_from_main(lambda: parallel.decide_compile(self.rt.device, micro_batches))

    def restore(self, run: Run, key: dict[str, Any]) -> Progress:
        """Restore weights, optimizer and random states in place, and return the position of the run.

        Raises:
            ValueError: The state is damaged, or of a run whose resume key differs from `key`.
        """
        if self.point is None:
            return Progress()
        check_unchanged(self.point.info.resume_key, key, self.point.step, self.point.path.parent)
        training_state.load_into(self.point.path, run.model, run.optimizers)
        progress = _restore_progress(self.point, run)
        print0(f"resuming after step {progress.step} of {run.steps}")
        return progress

    def clear(self) -> None:
        """Delete or rename old files that this run does not continue. Call only after all checks have passed.

        Raises:
            OSError: --overwrite cannot delete an old state, which a later --resume would find.
        """
        states = self.output.states
        _remove_temp_files(self.output)
        if self.output.overwrite and states.exists():
            shutil.rmtree(states)
        elif states.exists() and (self.point is None or _is_own(self.point.path.parent, states)):
            training_state.quarantine_newer(states, self.point.step if self.point else -1)
        states.mkdir(parents=True, exist_ok=True)  # from here on, the log of this name is known to be a run's

    def finish(self, run: Run, meta: dict, rows: TrainedRows | None) -> None:
        """Write the weights of a finished run if it was killed between its last state and them, or has a new name."""
        output = self.output
        if self.rt.is_main_process:
            _remove_temp_files(output)
        existing = read_meta(output.weights) if output.weights.is_file() else {}
        # By the run and not by the step alone: the weights that --overwrite was to replace may have as many.
        if (existing.get("run"), existing.get("step")) != (self.run_id, run.steps):
            weights = full_state_dict(run.model, keep=self.rt.is_main_process)
            if self.rt.is_main_process:
                if rows:
                    rows.save(output.rows)
                save_weights(output.weights, weights, {"log_ends": rows_until(self.log, run.steps)[-1:], **meta})
                if self.log != output.metrics:
                    continue_log(self.log, output.metrics, run.steps)
        print0(f"{output.weights} is finished: nothing left to do")


def begin(args: Args, rt: Runtime) -> Start:
    """Find the state to continue, or begin a fresh run.

    Raises:
        ValueError: Files of an earlier run would be replaced unasked, or the state cannot be continued.
    """
    path = rt.broadcast_from_main(lambda: find_state(args.output))
    point = None
    if path is not None:
        if not path.is_dir():
            raise ValueError(f"{path}: not seen by this process; all machines need a shared --save_dir")
        point = ResumePoint(path, read_info(path))
    run_id = point.info.run_id if point else rt.broadcast_from_main(lambda: uuid4().hex)
    return Start(args.output, rt, run_id, _rows_per_step(point, args.training, rt.world_size), point)


# ------------------------------------------------------------------------------------------------ finding


def find_state(output: Output) -> Path | None:
    """Return the folder of the state to continue; None for a fresh run."""
    _check_json_is_ours(output.weights.with_suffix(".json"))
    if output.overwrite:
        return None
    if output.resume and output.resume != "auto":
        return _named(Path(output.resume), output)
    newest = training_state.find_newest(output.states) if output.resume else None
    if newest is None:
        _check_unused(output)
        if output.resume:
            print0(f"--resume: no state in {output.states} yet, starting from the beginning")
    return newest


def _check_unused(output: Output) -> None:
    """Refuse to replace a file of this name, except for what its own run left before its first state.

    Every run makes the folder of its states before its log; without it the log and the plot are somebody else's.
    """
    states = output.states
    files = [output.weights, output.weights.with_suffix(".json")]
    if not states.is_dir():
        files += [output.metrics, output.plot, output.rows, states]
    elif not output.resume and any(path.suffix != ".tmp" for path in states.iterdir()):
        files.append(states)
    existing = next((path for path in files if path.exists()), None)
    if existing is None:
        return
    how = ": --resume continues it,"
    if output.resume or not training_state.list_states(states):
        how = f", but no whole state in {states}:"
    raise ValueError(f"{existing} exists already{how} --name NAME keeps it, --overwrite replaces it")


def _check_json_is_ours(file: Path) -> None:
    """Refuse to replace a .json that no run of ours wrote: --name package would replace a package.json."""
    if file.is_file() and "stage" not in read_meta(file):
        raise ValueError(f"{file} is not the .json of a run, and would be replaced: take another --name or --save_dir")


def _named(path: Path, output: Output) -> Path:
    """Return the state that --resume PATH means: one state, or the newest of a .state folder."""
    states = output.states
    check_path("--resume", path, "folder")
    if not path.is_dir():
        raise ValueError(f"--resume {path}: no such folder; name a .state folder or one state in it")
    is_state = path.name.isdigit()
    is_own = _is_own(path.parent if is_state else path, states)
    if not is_own and training_state.list_states(states):
        raise ValueError(f"--resume {path}: {states} has states of its own; --resume continues them, --name keeps them")
    state = path if is_state else training_state.find_newest(path)
    if state is None:
        raise ValueError(f"--resume {path}: no whole state in it")
    if is_state and (reason := training_state.find_corruption(path)):
        raise ValueError(f"--resume {path}: damaged ({reason})")
    if not is_own and read_meta(output.weights).get("run") != read_info(state).run_id:  # else it ended as this name
        _check_unused(output)
    return state


def _is_own(folder: Path, states: Path) -> bool:
    return folder.resolve() == states.resolve()


def _remove_temp_files(output: Output) -> None:
    """Remove what a killed run of this name was writing; files of another name may still be written."""
    if output.states.exists():
        training_state.remove_unfinished_states(output.states)
    remove_temp_files(output.weights, output.weights.with_suffix(".json"), output.rows, output.metrics)


# ---------------------------------------------------------------------------------------------- restoring


def _rows_per_step(point: ResumePoint | None, training: Training, world_size: int) -> int:
    """Return the rows of an optimizer step, over all ranks.

    If the number of ranks has changed, a resumed run keeps it and the accumulation steps per rank change.
    """
    rows_per_rank = training.batch_size * training.accumulation_steps
    if point is None:
        return rows_per_rank * world_size
    before = point.info.batch
    rows = before["rows_per_step"]
    unchanged = rows_per_rank == before["batch_size"] * before["accumulation_steps"]
    if rows_per_rank * world_size == rows or not unchanged or world_size == before["world_size"]:
        return rows_per_rank * world_size  # if it differs now, it is refused with the other changed flags
    if rows % (training.batch_size * world_size):
        raise ValueError(
            f"{point.path} was trained with {rows} rows a step, which do not divide into {world_size} processes x "
            f"{training.batch_size} rows; choose another number of processes"
        )
    return rows


def batch_layout(run: Run) -> dict[str, int]:
    """Return how a step's rows are divided, for the state."""
    return {
        "rows_per_step": run.rows_per_step,
        "batch_size": run.training.batch_size,
        "accumulation_steps": run.training.accumulation_steps,
        "world_size": run.runtime.world_size,
    }


def _restore_progress(point: ResumePoint, run: Run) -> Progress:
    rt, info = run.runtime, point.info
    run.scaler.load_state_dict(info.scaler)
    try:
        if rt.rank < len(info.ranks):  # ranks that did not exist before keep the seed of their own
            rng.set_random_states(info.ranks[rt.rank]["random"])
        window_sums = _window_sums([rank["window_sums"] for rank in info.ranks], rt)
        counts = Counts(**info.progress["window_counts"])
        progress = Progress(**info.progress | {"window_counts": counts, "window_sums": window_sums})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{point.path}: run.pt cannot be restored ({first_line(error)})") from None
    if rt.world_size != len(info.ranks):
        print0(
            f"the run had {len(info.ranks)} processes and has {rt.world_size}: each step stays {run.rows_per_step} "
            f"rows, now {run.micro_batches} micro-batches of {run.training.batch_size} rows for each "
            "process"
        )
    return progress


def _window_sums(sums: list[Tensor], rt: Runtime) -> Tensor:
    """Return this rank's share of the window's sums: its own, or all of them in one place if ranks have changed."""
    if rt.world_size == len(sums):
        return sums[rt.rank]
    if rt.is_main_process:
        return sum(sums[1:], sums[0])
    return torch.zeros_like(sums[0])  # 0 * NaN would be NaN
