"""--resume: which state is continued, what may differ from the run that left it, and how it is put back."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import optim
from engine.checkpoint import training_state
from engine.checkpoint.run_info import RunInfo, read_info
from engine.checkpoint.weights import full_state_dict, read_meta, save_weights
from engine.console import print0
from engine.files import first_line, remove_temp_files
from engine.log.tracker import continue_log
from engine.loop import Progress, Run
from engine.loss import Counts
from engine.machine import parallel, rng
from engine.machine.runtime import Runtime
from engine.options import Output, Performance, Training


@dataclass(frozen=True)
class ResumePoint:
    """A state to go on from."""

    path: Path
    info: RunInfo

    @property
    def step(self) -> int:
        return self.info.progress["step"]


def find(output: Output, rt: Runtime) -> ResumePoint | None:
    """The state to continue; None for a fresh start. Refuses to replace what an earlier run left unasked."""
    path = rt.broadcast_from_main(lambda: _choose(output))
    if path is None:
        return None
    if not path.is_dir():
        raise ValueError(f"{path}: not seen by this process; all machines need a shared --save_dir")
    return ResumePoint(path, read_info(path))


def _choose(output: Output) -> Path | None:
    weights, states = output.weights, output.states
    _refuse_foreign(weights.with_suffix(".json"))
    if output.resume and output.resume != "auto":
        return _named(Path(output.resume), states)
    if output.resume:
        if (newest := training_state.find_newest(states)) is not None:
            return newest
        if not weights.exists():
            print0(f"--resume: no state in {states} yet, starting from the beginning")
            return None
        raise ValueError(f"--resume: {weights} is there, but no whole state in {states}; --name NAME or --overwrite")
    if (weights.exists() or states.exists()) and not output.overwrite:
        raise ValueError(
            f"{weights} is there already: --resume continues it, --name NAME keeps it, --overwrite replaces it"
        )
    return None


def _refuse_foreign(file: Path) -> None:
    """ValueError when the .json of this name is none of ours: --name package would replace a package.json."""
    if file.is_file() and "stage" not in read_meta(file):
        raise ValueError(f"{file} is not the .json of a run, and would be replaced: take another --name or --save_dir")


def clear(output: Output, saved: ResumePoint | None) -> None:
    """Take what this run will not go on from out of its way. Only when every check has passed and it really begins.

    OSError when --overwrite cannot delete an old state: a later --resume would find it.
    """
    states = output.states
    _remove_left_overs(output)
    if output.overwrite and states.exists():
        shutil.rmtree(states)
    elif saved is None or saved.path.resolve().parent == states.resolve():
        training_state.quarantine_newer(states, saved.step if saved else -1)


def _remove_left_overs(output: Output) -> None:
    """What a run of this name that was killed was writing; that of another name may still be written."""
    training_state.remove_unfinished_states(output.states)
    remove_temp_files(output.weights, output.weights.with_suffix(".json"), output.metrics)


def _named(path: Path, states: Path) -> Path:
    """The state that --resume PATH means: one state, or the newest of a .state folder."""
    if not path.is_dir():
        raise ValueError(f"--resume {path}: no such folder; name a .state folder or one state in it")
    is_one = path.name.isdigit()
    own = (path.parent if is_one else path).resolve() == states.resolve()
    if not own and training_state.list_states(states):
        raise ValueError(f"--resume {path}: {states} has states of its own; --resume continues them, --name keeps them")
    if not is_one:
        if (newest := training_state.find_newest(path)) is None:
            raise ValueError(f"--resume {path}: no whole state in it")
        return newest
    if reason := training_state.find_corruption(path):
        raise ValueError(f"--resume {path}: damaged ({reason})")
    return path


def rows_per_step(saved: ResumePoint | None, training: Training, world_size: int) -> int:
    """Rows per optimizer step, over all ranks.

    If the number of ranks has changed, a resumed run keeps it and the accumulation steps per rank change.
    """
    mine = training.batch_size * training.accumulation_steps
    if saved is None:
        return mine * world_size
    before = saved.info.batch
    rows = before["rows_per_step"]
    unchanged = mine == before["batch_size"] * before["accumulation_steps"]
    if mine * world_size == rows or not unchanged or world_size == before["world_size"]:
        return mine * world_size  # what differs now is refused with the other changed flags
    if rows % (training.batch_size * world_size):
        raise ValueError(
            f"{saved.path} was trained with {rows} rows a step, which do not divide into {world_size} processes x "
            f"{training.batch_size} rows; choose another number of processes"
        )
    return rows


def compiling(
    saved: ResumePoint | None, machine: Performance, rt: Runtime, micro_batches: int
) -> parallel.CompileDecision:
    """What was typed; else what the run's first part did; else what the main process finds right."""
    if machine.compile is not None:
        return parallel.CompileDecision(machine.compile, "as typed")
    if saved:
        return parallel.CompileDecision(saved.info.compiled, "as in the run's first part")
    return rt.broadcast_from_main(lambda: parallel.decide_compile(rt.device, micro_batches))


def batch_of(run: Run) -> dict[str, int]:
    """How a step's rows are divided, for the state."""
    return {
        "rows_per_step": run.batches.rows_per_step * run.batches.rows.join_factor,
        "batch_size": run.training.batch_size,
        "accumulation_steps": run.training.accumulation_steps,
        "world_size": run.runtime.world_size,
    }


def check_unchanged(saved: ResumePoint, now: dict[str, Any]) -> None:
    """Refuse to resume when a setting that changes the result differs.

    More steps are allowed if every learning rate so far would have been the same.
    """
    before = saved.info.identity
    changed = [name for name, value in now.items() if before.get(name) != value]
    if changed == ["steps"] and _same_past(saved.step, before, now):
        return
    if changed:
        words = "; ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
        hint = ""
        if "steps" in changed:
            hint = " (a run can only be made longer with --schedule wsd, from a state before its decay)"
        if "row_len" in changed:
            hint = " (--max_seq_len, --batch_size and the device decide how rows are laid out)"
        raise ValueError(
            f"{saved.path.parent} belongs to another run: {words}{hint}. Use the old flags, --name or --overwrite"
        )


def _same_past(step: int, before: dict, now: dict) -> bool:
    """Whether a run of the new length would have done the same until `step`."""
    rates = [
        optim.schedule(plan["schedule"], max_lr=plan["learning_rate"], steps=plan["steps"], warmup=plan["warmup_iters"])
        for plan in (before, now)
    ]
    return step <= now["steps"] and all(rates[0](done) == rates[1](done) for done in range(step))


def restore(saved: ResumePoint, run: Run) -> Progress:
    """Put weights, optimizer and random states back, in place, and return where the run stands."""
    rt, info = run.runtime, saved.info
    training_state.load_into(saved.path, run.model, run.optimizers)
    run.scaler.load_state_dict(info.scaler)
    try:
        if rt.rank < len(info.ranks):  # ranks that were not there before keep the seed of their own
            rng.set_random_states(info.ranks[rt.rank]["random"])
        sums = [rank["window_sums"] for rank in info.ranks]
        mine = sums[rt.rank] if rt.world_size == len(sums) else sum(sums) if rt.is_main_process else 0 * sums[0]
        counts = Counts(**info.progress["window_counts"])
        progress = Progress(**info.progress | {"window_counts": counts, "window_sums": mine})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{saved.path}: run.pt cannot be put back ({first_line(error)})") from None
    if rt.world_size != len(sums):
        print0(
            f"the run had {len(sums)} processes and has {rt.world_size}: each step stays "
            f"{batch_of(run)['rows_per_step']} rows, now {run.batches.micro_batches} micro-batches of "
            f"{run.training.batch_size} rows for each process"
        )
    return progress


def log_of(saved: ResumePoint, output: Output) -> Path:
    """The log of the run that is continued, also where it had another name."""
    own = saved.path.resolve().parent == output.states.resolve()
    return output.metrics if own else saved.path.parent.with_suffix(".metrics.jsonl")


def finish(saved: ResumePoint, run: Run, meta: dict) -> None:
    """A finished run: write the weights if the run was killed between its last state and them, or has a new name."""
    output = run.output
    if run.runtime.is_main_process:
        _remove_left_overs(output)
    there = read_meta(output.weights) if output.weights.is_file() else {}
    # By the run and not by the step alone: the weights that --overwrite was to replace may have as many.
    if (there.get("run"), there.get("step")) != (saved.info.run, saved.step):
        weights = full_state_dict(run.model, keep=run.runtime.is_main_process)
        if run.runtime.is_main_process:
            save_weights(output.weights, weights, meta)
            if (log := log_of(saved, output)) != output.metrics:
                continue_log(log, output.metrics, saved.step)
    print0(f"{output.weights} is finished: nothing left to do")
