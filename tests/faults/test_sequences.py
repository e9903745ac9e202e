"""Starts, stops, kills, renames, second starts in any order: each ends with the right bits, or is refused and why."""

import hashlib
import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path

import pytest
import torch
from harness import DEFAULTS, begin, end, go, rows, tensors, wait_for
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from engine.checkpoint import training_state

FLAGS = [
    *"--dim 32 --n_layers 1 --n_heads 2 --n_kv_heads 1 --dropout 0.1".split(),
    *DEFAULTS.split(),
    *"--max_seq_len 64 --max_steps 6 --eval_step 4".split(),
]
RUNS = {  # runs that differ in what they compute; the last two are one run that is made longer
    "slow": ["--learning_rate", "0.001"],
    "fast": ["--learning_rate", "0.02"],
    "flat": ["--schedule", "wsd"],
    "flat-longer": ["--schedule", "wsd", "--max_steps", "9"],
}
RATES = {"fast": 0.02}
STEPS = dict.fromkeys(RUNS, 6) | {"flat-longer": 9}
PLACES = ("_encode_block", "trial", "validate", "train_step", "write", "save_weights", "_drop_old", "clear", "finish")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

run_of = st.sampled_from(list(RUNS))
name_of = st.sampled_from(["a", "b.1"])
how_of = st.sampled_from(["", "--resume", "--resume", "--overwrite"])
free_of = st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([1, 2]))  # --save_step, --keep
OFTEN = {"validate": 3, "train_step": 6, "write": 6, "save_weights": 6, "_drop_old": 5}
place_of = st.sampled_from(
    [(place, call) for place, name in enumerate(PLACES) for call in range(1, OFTEN.get(name, 1) + 1)]
)
fate_of = st.none() | st.one_of(
    st.tuples(st.just("die_before_write"), st.integers(1, 70)),
    st.tuples(st.just("at_a_place"), place_of, st.sampled_from(SIGNALS)),
)


def digest(weights) -> str:
    """Of everything but the output matrix, which is the embedding."""
    names = sorted(weights.keys() - {"output.weight"})
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in names)).hexdigest()


def contents(folder: Path) -> dict:
    """Every file but the locks: one that a killed run left is taken away by whoever comes next."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.suffixes]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Calm(dict):
    """run -> ({step: (digest of its weights, all tensors of its state)}, its log) when nothing happens to it."""

    def __init__(self, home: Path):
        self.home = home

    def __missing__(self, run: str):
        where = ["--save_dir", "calm", "--name", run, "--save_step", "1", "--keep", "99"]
        done = go("pretrain", [*FLAGS, *RUNS[run], *where], self.home)
        assert done.code == 0, done.said
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
    """One folder of results, and what a user and a machine can do to it."""

    home: Path
    calm: dict
    numbers = count()

    def __init__(self):
        super().__init__()
        self.rank_and_world_size = self.home / f"sequence-{next(self.numbers)}"
        self.rank_and_world_size.mkdir()
        self.folder = self.rank_and_world_size / "results"
        self.last: tuple[str, str] | None = None
        self.begun: set[str] = set()  # runs whose weights may lie here

    # --------------------------------------------------------------------------------------------- what is done

    @rule(run=run_of, name=name_of, how=how_of, free=free_of, fate=fate_of)
    def start(self, run, name, how, free, fate):
        before = self.before(name)
        prepare = self.prepared(fate)
        done = go("pretrain", self.argv(run, name, how, free), self.rank_and_world_size, *prepare)
        self.judge(run, name, how, done, before)

    @rule(run=run_of, name=name_of, free=free_of, fate=fate_of, source=name_of, step=st.integers(0, 9))
    def resume_from(self, run, name, free, fate, source, step):
        """--resume PATH: a folder of states, or one state of it; step 0 means the folder."""
        path = self.folder / f"{source}.state" / (f"{step:08d}" if step else "")
        before = self.before(name)
        done = go(
            "pretrain",
            self.argv(run, name, "--resume", free, str(path)),
            self.rank_and_world_size,
            *self.prepared(fate),
        )
        self.judge(run, name, str(path), done, before)

    @rule(
        run=run_of,
        name=name_of,
        how=how_of,
        free=free_of,
        place=place_of,
        second=st.lists(st.tuples(run_of, how_of), min_size=1, max_size=2),
        last=st.sampled_from([0, *SIGNALS]),
    )
    def start_twice(self, run, name, how, free, place, second, last):
        """A run stands still at some place; the same name is started again and again; it goes on or is ended."""
        before = self.before(name)
        for marker in ("paused", "go-on"):
            (self.rank_and_world_size / marker).unlink(missing_ok=True)
        first = begin("pretrain", self.argv(run, name, how, free), self.rank_and_world_size, "at_a_place", *place, 0)
        try:
            wait_for(self.rank_and_world_size / "paused", first)
        except AssertionError:  # it ended before
            self.judge(run, name, how, end(first), before)
            return
        try:
            still = PLACES[place[0]] in ("trial", "clear", "finish")  # elsewhere another thread trains or saves
            there = contents(self.folder) if still else {}
            for other, how_again in second if PLACES[place[0]] != "_encode_block" else ():
                done = go("pretrain", self.argv(other, name, how_again, free), self.rank_and_world_size)
                assert done.code == 2 and f"process {first.pid} on" in done.said, done
            assert not still or contents(self.folder) == there, "a second start changed what was there"
            if last:
                os.kill(first.pid, last)
            (self.rank_and_world_size / "go-on").touch()
            ended = end(first)
        finally:
            first.kill()
        self.judge(run, name, how, ended, before)

    @rule()
    def move(self):
        """The user renames the folder."""
        if self.folder.exists():
            self.folder = self.folder.rename(self.rank_and_world_size / f"results{next(self.numbers)}")

    @precondition(lambda self: self.last)
    @rule(what=st.sampled_from(["run.pt", "manifest.json", "tensors/.metadata"]), how=st.sampled_from(["cut", "gone"]))
    def damage(self, what, how):
        """The newest state loses a file, or its end."""
        states = training_state.list_states(self.folder / f"{self.last[1]}.state")
        if states and (file := states[-1] / what).exists():
            file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[:-3])

    def teardown(self):
        """Whatever has happened: the last run can be continued, or begun anew, and ends with its bits."""
        try:
            if self.last:
                run, name = self.last
                self.start(run, name, "--resume", (2, 2), None)
                if self.code == 2:
                    self.start(run, name, "--overwrite", (2, 2), None)
                assert self.code == 0
        finally:
            shutil.rmtree(self.rank_and_world_size)

    # ------------------------------------------------------------------------------------------- how it is done

    def argv(self, run, name, how, free, *path):
        save_step, keep = free
        own = ["--data_path", str(self.home / "pretrain.jsonl"), "--save_dir", self.folder.name, "--name", name]
        return [
            *FLAGS,
            *RUNS[run],
            *own,
            "--save_step",
            str(save_step),
            "--keep",
            str(keep),
            *filter(None, [how]),
            *path,
        ]

    def prepared(self, fate):
        if fate is None:
            return []
        if fate[0] == "at_a_place":
            return ["at_a_place", *fate[1], int(fate[2])]
        return list(fate)

    # -------------------------------------------------------------------------------------------- what must hold

    def before(self, name):
        """(every file, (run, step) of the newest whole state, whether there are results) before a command."""
        found = contents(self.folder) if self.folder.exists() else {}
        return found, self.newest(name), any(path.startswith((f"{name}.pth", f"{name}.state/")) for path in found)

    def newest(self, name):
        for path in reversed(training_state.list_states(self.folder / f"{name}.state")):
            if not training_state.damage(path):
                known = torch.load(path / "run.pt", weights_only=True)
                return known["identity"], int(path.name)
        return None

    def judge(self, run, name, how, done, before):
        self.code = done.code
        files, newest, there = before
        assert "Traceback" not in done.said, done.said
        assert done.code in (0, 2, 75, -signal.SIGKILL), done
        if done.code == 2:
            self.judge_refusal(run, name, how, done, before)
            return
        self.last = run, name
        self.begun.add(run)
        steps, log = self.calm[run]
        known = {weights for one in self.begun for weights, _ in self.calm[one][0].values()}
        weights = self.folder / f"{name}.pth"
        if weights.exists():
            assert digest(torch.load(weights, weights_only=True)) in known, "weights that no run had"
        assert not (how == "" and there), "what was there was replaced unasked"
        if done.code == -signal.SIGKILL:
            return
        left = [path.name for path in self.folder.rglob(f"{name}.*") if ".tmp" in path.name or ".lock" in path.name]
        assert not left and not list(self.folder.glob(f"{name}.state/*.tmp")), left
        if done.code == 75 and "nothing is lost" in done.said:
            return
        meta = json.loads(weights.with_suffix(".json").read_text("utf-8"))
        step = STEPS[run] if done.code == 0 else meta["step"]
        assert meta["step"] == step and digest(torch.load(weights, weights_only=True)) == steps[step][0]
        assert meta["flags"]["learning_rate"] == RATES.get(run, 1e-3)
        if (self.folder / f"{name}.state").exists() or "finished" not in done.said:
            values = tensors(self.folder / f"{name}.state")
            assert all(torch.equal(values[key], steps[step][1][key]) for key in steps[step][1].keys() | values.keys())
        found = rows(self.folder / f"{name}.metrics.jsonl")
        if run == "flat-longer":  # where it ended first, it was validated
            found = [{key: row[key] for key in row if row["step"] != 6 or key in log[3]} for row in found]
        assert found == [row for row in log if row["step"] <= step], "log"

    def judge_refusal(self, run, name, how, done, before):
        """With a reason that is true, and nothing was changed."""
        files, newest, there = before
        said = done.said.strip().splitlines()[-1]
        assert said.startswith("error: "), done.said
        if how == "":
            assert there and "is there already" in said, said
        elif how == "--overwrite":
            raise AssertionError(said)
        elif how == "--resume" and "belongs to another run" in said:
            assert newest and self.differs(run, *newest), (said, newest)
        elif how == "--resume":
            assert "no whole state" in said and not newest, said
        assert (contents(self.folder) if self.folder.exists() else {}) == files, (
            "a refused start changed what was there"
        )

    def differs(self, run, identity, step):
        rate = RATES.get(run, 1e-3)
        schedule = "wsd" if run.startswith("flat") else "cosine"
        return (identity["learning_rate"], identity["schedule"], identity["steps"]) != (rate, schedule, STEPS[run])


@pytest.mark.faults
def test_whatever_is_done_to_a_run_it_ends_right_or_is_refused_with_a_reason(home, calm):
    Sequences.home, Sequences.calm = home, calm
    many = int(os.environ.get("SEQUENCES", 200))
    run_state_machine_as_test(
        Sequences,
        settings=settings(max_examples=many, stateful_step_count=5, phases=[Phase.generate], print_blob=False),
    )


# Each a list of (rule, what it is given).
SHORT = {
    "overwritten, killed before its weights are there": [
        ("start", dict(run="slow", name="a", how="", free=(2, 2), fate=None)),
        ("start", dict(run="fast", name="a", how="", free=(2, 2), fate=None)),
        (
            "start",
            dict(
                run="fast",
                name="a",
                how="--overwrite",
                free=(0, 1),
                fate=("at_a_place", (PLACES.index("save_weights"), 1), signal.SIGKILL),
            ),
        ),
    ],
    "started again while it saves, stopped, moved, gone on under another name": [
        (
            "start_twice",
            dict(
                run="slow",
                name="a",
                how="",
                free=(2, 2),
                place=(PLACES.index("write"), 1),
                second=[("fast", "--overwrite")],
                last=signal.SIGTERM,
            ),
        ),
        ("move", {}),
        ("resume_from", dict(run="slow", name="b.1", free=(2, 2), fate=None, source="a", step=0)),
    ],
}


@pytest.mark.parametrize("name", SHORT)
def test_two_of_these_sequences(name, home, calm):
    Sequences.home, Sequences.calm = home, calm
    sequence = Sequences()
    for rule_name, given in SHORT[name]:
        getattr(sequence, rule_name)(**given)
    sequence.teardown()
