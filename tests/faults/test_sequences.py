"""Starts, stops, kills, renames, second starts in any order: each ends with the right bits, or is refused and why."""

import hashlib
import json
import os
import shutil
import signal
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from factories import rows, same, tensors, weights
from forked import PLACES, WRITES, die_before_write, finish, pause_at, run_stage, signal_at, start_stage, wait_for
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from engine.checkpoint import training_state

FLAGS = ["--dropout", "0.1"]
RUNS = {  # the last two are one run that is made longer
    "slow": ["--learning_rate", "0.001"],
    "fast": ["--learning_rate", "0.02"],
    "flat": ["--schedule", "wsd"],
    "flat-longer": ["--schedule", "wsd", "--max_steps", "9"],
}
RATES = {"fast": 0.02}
STEPS = dict.fromkeys(RUNS, 6) | {"flat-longer": 9}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

CALLS = {"validate": 3, "train_step": 6, "write": 6, "save_weights": 6, "_drop_old": 5}  # of a place; others: 1

runs = st.sampled_from(list(RUNS))
names = st.sampled_from(["a", "b.1"])
modes = st.sampled_from(["", "--resume", "--resume", "--overwrite"])
saves = st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([1, 2]))  # --save_step, --keep
places = st.sampled_from([name for name in PLACES if name not in WRITES]).flatmap(
    lambda name: st.tuples(st.just(name), st.integers(1, CALLS.get(name, 1)))
)
fates = (
    st.none()
    | st.integers(1, 70).map(lambda number: partial(die_before_write, number))
    | st.tuples(places, st.sampled_from(SIGNALS)).map(lambda fate: partial(signal_at, *fate[0], fate[1]))
)


def digest(weights) -> str:
    """Hash everything but the output matrix, which is the embedding."""
    names = sorted(weights.keys() - {"output.weight"})
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in names)).hexdigest()


def contents(folder: Path) -> dict:
    """Read every file but the locks: the next run removes one that a killed run left."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.suffixes]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Calm(dict):
    """Map an undisturbed run to ({step: (digest of its weights, all tensors of its state)}, its log)."""

    def __init__(self, home: Path):
        self.home = home

    def __missing__(self, run: str):
        where = ["--save_dir", "calm", "--name", run, "--save_step", "1", "--keep", "99"]
        done = run_stage(self.home, *FLAGS, *RUNS[run], *where)
        assert done.code == 0, done.output
        states, steps = self.home / f"calm/{run}.state", {}
        for step in range(STEPS[run], 0, -1):
            values = tensors(states)  # of the newest
            names = [name.removeprefix("model.") for name in values if name.startswith("model.")]
            steps[step] = digest({name: values[f"model.{name}"] for name in names}), values
            shutil.rmtree(states / f"{step:08d}")
        self[run] = steps, rows(self.home / f"calm/{run}.metrics.jsonl")
        return self[run]


@pytest.fixture(scope="session")
def calm(home):
    return Calm(home)


class Sequences(RuleBasedStateMachine):
    """Do to one folder of results what a user and a machine can do to it."""

    home: Path
    calm: dict
    numbers = count()

    def __init__(self):
        super().__init__()
        self.cwd = self.home / f"sequence-{next(self.numbers)}"
        self.cwd.mkdir()
        self.folder = self.cwd / "results"
        self.last: tuple[str, str] | None = None
        self.begun: set[str] = set()  # runs whose weights may be here

    # --------------------------------------------------------------------------------------------- what is done

    @rule(run=runs, name=names, mode=modes, save=saves, fate=fates)
    def start(self, run, name, mode, save, fate):
        before = self.before(name)
        done = run_stage(self.cwd, *self.argv(run, name, save), *filter(None, [mode]), prepare=fate)
        self.judge(run, name, mode, done, before)

    @rule(run=runs, name=names, save=saves, fate=fates, source=names, step=st.integers(0, 9))
    def resume_from(self, run, name, save, fate, source, step):
        """Resume by a path: a folder of states, or one state of it; step 0 means the folder."""
        path = self.folder / f"{source}.state" / (f"{step:08d}" if step else "")
        before = self.before(name)
        done = run_stage(self.cwd, *self.argv(run, name, save), "--resume", str(path), prepare=fate)
        self.judge(run, name, str(path), done, before)

    @rule(
        run=runs,
        name=names,
        mode=modes,
        save=saves,
        place=places,
        others=st.lists(st.tuples(runs, modes), min_size=1, max_size=2),
        last=st.sampled_from([0, *SIGNALS]),
    )
    def start_twice(self, run, name, mode, save, place, others, last):
        """Pause a run at some place, start the same name again and again, then let the run continue or end it."""
        before = self.before(name)
        argv = [*self.argv(run, name, save), *filter(None, [mode])]
        first = start_stage(self.cwd, *argv, prepare=partial(pause_at, *place))
        try:
            wait_for(self.cwd / "paused", first)
        except AssertionError:  # it ended before
            self.judge(run, name, mode, finish(first), before)
            return
        try:
            still = place[0] in ("dry_run", "clear", "finish")  # elsewhere another thread trains or saves
            files = contents(self.folder)
            if place[0] != "_encode_block":
                for other, other_mode in others:
                    done = run_stage(self.cwd, *self.argv(other, name, save), *filter(None, [other_mode]))
                    assert done.code == 2 and f"process {first.pid} on" in done.output, done
            assert not still or contents(self.folder) == files, "a second start changed a file"
            if last:
                os.kill(first.pid, last)
            (self.cwd / "continue").touch()
            done = finish(first)
        finally:
            first.kill()
        self.judge(run, name, mode, done, before)

    @rule()
    def move(self):
        """The user renames the folder."""
        if self.folder.exists():
            self.folder = self.folder.rename(self.cwd / f"results{next(self.numbers)}")

    @precondition(lambda self: self.last)
    @rule(file=st.sampled_from(["run.pt", "manifest.json", "tensors/.metadata"]), is_deleted=st.booleans())
    def damage(self, file, is_deleted):
        """Delete a file of the newest state, or its end."""
        states = training_state.list_states(self.folder / f"{self.last[1]}.state")
        if states and (path := states[-1] / file).exists():
            content = path.read_bytes()
            path.unlink()
            if not is_deleted:
                path.write_bytes(content[:-3])

    def teardown(self):
        """Check that the last run can be continued whatever has happened, or begun again, and ends with its bits."""
        try:
            if self.last:
                run, name = self.last
                self.start(run, name, "--resume", (2, 2), None)
                if self.code == 2:
                    self.start(run, name, "--overwrite", (2, 2), None)
                assert self.code == 0
        finally:
            shutil.rmtree(self.cwd)

    # ------------------------------------------------------------------------------------------- helpers

    def argv(self, run, name, save):
        own = ["--data_path", str(self.home / "pretrain.jsonl"), "--save_dir", self.folder.name, "--name", name]
        return [*FLAGS, *RUNS[run], *own, "--save_step", str(save[0]), "--keep", str(save[1])]

    # -------------------------------------------------------------------------------------------- what must hold

    def before(self, name):
        """Return every file, (run, step) of the newest whole state, whether there are results; before a command."""
        files = contents(self.folder)
        results = [path for path in files if path.startswith((f"{name}.pth", f"{name}.state/")) and ".tmp" not in path]
        return files, self.newest(name), bool(results)

    def newest(self, name):
        for path in reversed(training_state.list_states(self.folder / f"{name}.state")):
            if not training_state.find_corruption(path):
                known = torch.load(path / "run.pt", weights_only=True)
                return known["resume_key"], int(path.name)
        return None

    def digests(self, run):
        return {weights_digest for weights_digest, _ in self.calm[run][0].values()}

    def judge(self, run, name, mode, done, before):
        self.code = done.code
        files, newest, there = before
        assert "Traceback" not in done.output, done.output
        assert done.code in (0, 2, 75, -signal.SIGKILL), done
        if done.code == 2:
            self.judge_refusal(run, name, mode, done, before)
            return
        self.last = run, name
        self.begun.add(run)
        steps, log = self.calm[run]
        path = self.folder / f"{name}.pth"
        if path.exists():
            actual = digest(weights(path))
            assert any(actual in self.digests(other) for other in self.begun), "weights that no run had"
        assert not (mode == "" and there), "what was there was replaced unasked"
        if done.code == -signal.SIGKILL:
            return
        left = [path.name for path in self.folder.rglob(f"{name}.*") if ".tmp" in path.name or ".lock" in path.name]
        assert not left and not list(self.folder.glob(f"{name}.state/*.tmp")), left
        if done.code == 75 and "nothing is lost" in done.output:
            return
        meta = json.loads(path.with_suffix(".json").read_text("utf-8"))
        step = STEPS[run] if done.code == 0 else meta["step"]
        assert meta["step"] == step and actual == steps[step][0]
        assert meta["flags"]["learning_rate"] == RATES.get(run, 1e-3)
        if (self.folder / f"{name}.state").exists() or "finished" not in done.output:
            assert same(tensors(self.folder / f"{name}.state"), steps[step][1])
        metrics = rows(self.folder / f"{name}.metrics.jsonl")
        if run == "flat-longer":  # where it ended first, it was validated
            metrics = [{key: row[key] for key in row if row["step"] != 6 or key in log[3]} for row in metrics]
        assert metrics == [row for row in log if row["step"] <= step], "log"

    def judge_refusal(self, run, name, mode, done, before):
        """Check that the reason is true, and that no file was changed."""
        files, newest, there = before
        error = done.output.strip().splitlines()[-1]
        assert error.startswith("error: "), done.output
        if mode == "":
            assert there and "exists already" in error, error
        elif mode == "--overwrite":
            raise AssertionError(error)
        elif mode == "--resume" and "belongs to another run" in error:
            assert newest and self.differs(run, *newest), (error, newest)
        elif mode == "--resume":
            assert "no whole state" in error and not newest, error
        assert contents(self.folder) == files, "a refused start changed a file"

    def differs(self, run, key, step):
        rate = RATES.get(run, 1e-3)
        schedule = "wsd" if run.startswith("flat") else "cosine"
        return (key["learning_rate"], key["schedule"], key["steps"]) != (rate, schedule, STEPS[run])


@pytest.mark.faults
def test_run_ends_right_or_is_refused_whatever_is_done_to_it(home, calm):
    Sequences.home, Sequences.calm = home, calm
    many = int(os.environ.get("SEQUENCES", 200))
    run_state_machine_as_test(
        Sequences,
        settings=settings(max_examples=many, stateful_step_count=5, phases=[Phase.generate], print_blob=False),
    )


@pytest.fixture
def sequence(home, calm):
    Sequences.home, Sequences.calm = home, calm
    sequence = Sequences()
    yield sequence
    sequence.teardown()


def test_overwriting_run_killed_before_its_weights_ends_right(sequence):
    sequence.start("slow", "a", "", (2, 2), None)
    sequence.start("fast", "a", "", (2, 2), None)
    sequence.start("fast", "a", "--overwrite", (0, 1), partial(signal_at, "save_weights", 1, signal.SIGKILL))


def test_moved_run_stopped_in_a_save_resumes_under_another_name(sequence):
    """It is started again while it saves, too."""
    sequence.start_twice("slow", "a", "", (2, 2), ("write", 1), [("fast", "--overwrite")], signal.SIGTERM)
    sequence.move()
    sequence.resume_from("slow", "b.1", (2, 2), None, "a", 0)
