"""--resume: which state is continued, what may differ from the run that left it, and how it is put back."""

import functools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from engine import checkpoint, optim, state
from engine.checkpoint import first_line
from engine.loop import Progress, Run
from engine.loss import Counts
from engine.runtime import Runtime
from engine.settings import Output, Training


@dataclass(frozen=True)
class Saved:
    """A state to go on from."""

    path: Path
    rest: dict

    @property
    def step(self) -> int:
        return self.rest["progress"]["step"]


def find(output: Output, rt: Runtime) -> Saved | None:
    """The state to continue; None for a fresh start. Refuses to replace what an earlier run left unasked."""
    path = rt.from_main(lambda: _choose(output))
    if path is None:
        return None
    if not path.is_dir():
        raise ValueError(f"{path}: not seen by this process; all machines need a shared --save_dir")
    return Saved(path, state.read_rest(path))


def _readable(use):
    """A state that is not as this program writes it is a problem of that file: one line that names it."""

    @functools.wraps(use)
    def checked(saved: Saved, *arguments):
        try:
            return use(saved, *arguments)
        except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ValueError(f"{saved.path}: cannot be put back ({reason})") from None

    return checked


def _choose(output: Output) -> Path | None:
    weights, states = output.weights, output.states
    weights.parent.mkdir(parents=True, exist_ok=True)
    if output.resume and output.overwrite:
        raise ValueError("--resume continues what is there, --overwrite starts again: choose one")
    state.remove_leftovers(states)
    if output.resume and output.resume != "auto":
        return _named(Path(output.resume), states)
    if output.resume:
        if (newest := state.find_newest(states)) is not None:
            return newest
        if not weights.exists():
            print(f"--resume: no state in {states} yet, starting from the beginning")
            return None
        raise ValueError(f"--resume: {weights} is there, but no whole state in {states}; --name NAME or --overwrite")
    if weights.exists() or states.exists():
        if not output.overwrite:
            raise ValueError(
                f"{weights} is there already: --resume continues it, --name NAME keeps it, --overwrite replaces it"
            )
        shutil.rmtree(states, ignore_errors=True)  # a later --resume must not find the old run's states
    return None


def _named(path: Path, states: Path) -> Path:
    """The state that --resume PATH means: one state, or the newest of a .state folder."""
    if not path.is_dir():
        raise ValueError(f"--resume {path}: no such folder; name a .state folder or one state in it")
    is_one = path.name.isdigit()
    own = (path.parent if is_one else path).resolve() == states.resolve()
    if not own and state.list_states(states):
        raise ValueError(f"--resume {path}: {states} has states of its own; --resume continues them, --name keeps them")
    if not is_one:
        if (newest := state.find_newest(path)) is None:
            raise ValueError(f"--resume {path}: no whole state in it")
        return newest
    if reason := state.damage(path):
        raise ValueError(f"--resume {path}: damaged ({reason})")
    if own:
        state.set_aside_newer(path)
    return path


@_readable
def rows_per_step(saved: Saved | None, training: Training, world: int) -> int:
    """Rows of one optimizer step over all ranks. With other ranks than before it stays, and each accumulates anew."""
    mine = training.batch_size * training.accumulation_steps
    if saved is None:
        return mine * world
    before = saved.rest["batch"]
    rows = before["rows_per_step"]
    unchanged = mine == before["batch_size"] * before["accumulation_steps"]
    if mine * world == rows or not unchanged or world == before["world"]:
        return mine * world  # what differs now is refused with the other changed flags
    if rows % (training.batch_size * world):
        raise ValueError(
            f"{saved.path} was trained with {rows} rows a step, which do not divide into {world} processes x "
            f"{training.batch_size} rows; choose another number of processes"
        )
    return rows


@_readable
def warmup_iters(saved: Saved) -> int:
    return saved.rest["identity"]["warmup_iters"]


@_readable
def refuse_changes(saved: Saved, now: dict) -> None:
    """ValueError when flags differ that decide what a run computes; a longer run is one only if past rates differ."""
    before = saved.rest["identity"]
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
        raise ValueError(f"{saved.path.parent} belongs to another run: {words}{hint}. "
                         "Use the old flags, --name or --overwrite")  # fmt: skip


def _same_past(step: int, before: dict, now: dict) -> bool:
    """Whether a run of the new length would have done the same until `step`."""
    rates = [
        optim.schedule(plan["schedule"], peak=plan["learning_rate"], steps=plan["steps"], warmup=plan["warmup_iters"])
        for plan in (before, now)
    ]
    return step <= now["steps"] and all(rates[0](done) == rates[1](done) for done in range(step))


@_readable
def restore(saved: Saved, run: Run) -> Progress:
    """Put everything back, in place, and return where the run stands."""
    rt, rest = run.runtime, saved.rest
    state.restore(saved.path, run.model, run.optimizers)
    run.scaler.load_state_dict(rest["scaler"])
    ranks = rest["ranks"]
    if rt.rank < len(ranks):  # ranks that were not there before keep the seed of their own
        state.set_random_states(ranks[rt.rank]["random"])
    sums = ranks[rt.rank]["window_sums"] if rt.rank < len(ranks) else 0 * ranks[0]["window_sums"]
    if rt.world != len(ranks):  # what all ranks summed up, once
        sums = sum(part["window_sums"] for part in ranks) if rt.main else 0 * sums
        micro = run.batches.rows_per_step // (run.training.batch_size * rt.world)
        rt.say(f"the run had {len(ranks)} processes and has {rt.world}: each step stays {run.batches.rows_per_step} "
               f"rows, now {micro} micro-batches of {run.training.batch_size} rows a process")  # fmt: skip
    counts = Counts(**rest["progress"]["window_counts"])
    return replace(Progress(**rest["progress"]), window_counts=counts, window_sums=sums)


def finish(saved: Saved, run: Run, meta: dict) -> None:
    """A finished run: write the weights if the run was killed between its last state and them."""
    output = run.output
    if checkpoint.read_meta(output.weights).get("step") != saved.step or not output.weights.is_file():
        weights = checkpoint.cpu_weights(run.model, kept=run.runtime.main)
        if run.runtime.main:
            checkpoint.save_weights(output.weights, weights, meta)
    run.runtime.say(f"{output.weights} is finished: nothing left to do")
