"""Saving beside the training: the step waits for a copy of the tensors, not for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import torch.distributed as dist

from engine import checkpoint, state
from engine.loop import Progress, Run
from engine.runtime import Runtime
from engine.settings import Output


@dataclass
class Saver:
    """One save at a time, each by a thread. A save that fails is told at once, and again at every log step.

    Args:
        describe: progress -> the content of the .json beside the weights.
        constant: what every state holds beside what changes: identity, batch, run_id.
    """

    runtime: Runtime
    output: Output
    describe: Callable[[Progress], dict]
    constant: dict
    group: dist.ProcessGroup | None = None  # of the savers' own, when ranks hold shards: the loop's is in use
    problem: str | None = None  # of the last save
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "save"))
    _pending: Future | None = None

    def __call__(self, run: Run, progress: Progress) -> None:
        """Copy everything, write it later. Every rank calls this; who holds nothing of its own writes nothing."""
        self.wait()
        mine = {"random": state.random_states(), "window_sums": progress.window_sums.cpu().clone()}
        ranks, troubles = zip(*self.runtime.gather((mine, self._sync(run))), strict=True)
        if any(troubles):  # known to every rank: one that saved alone would wait for the others
            return self._failed(run, progress.step, next(filter(None, troubles)))
        changing = vars(progress) | {"window_counts": asdict(progress.window_counts), "window_sums": None}
        rest = self.constant | {"progress": changing, "scaler": run.scaler.state_dict(), "ranks": list(ranks)}
        meta = self.describe(progress)
        if self.group is not None:
            weights = checkpoint.cpu_weights(run.model, kept=self.runtime.main)  # every rank has to help
        elif not self.runtime.main:
            return
        tensors = state.copy_tensors(run.model, run.optimizers)
        if self.group is None:
            weights = checkpoint.tied({name: tensors[f"model.{name}"] for name, _ in run.model.named_parameters()})
        self._pending = self._thread.submit(self._write, run, progress.step, tensors, rest, weights, meta)

    def _write(self, run: Run, step: int, tensors: dict, rest: dict, weights: dict, meta: dict) -> None:
        main = self.runtime.main
        try:
            state.write(self.output.states, step, tensors, rest, keep=self.output.keep, main=main, group=self.group)
            if main:
                checkpoint.save_weights(self.output.weights, weights, meta)
            self.problem = None
        except Exception as error:  # whatever it is, it must not end the run
            self._failed(run, step, str(error))

    def _sync(self, run: Run) -> str | None:
        """The log's rows reach the disk before a state counts on them; what went wrong."""
        try:
            run.tracker.sync()
        except OSError as error:
            return f"{run.tracker.path}: {error}"
        return None

    def _failed(self, run: Run, step: int, reason: str) -> None:
        self.problem = f"step {step} was not saved: {reason}"
        run.tracker.say(f"warning: {self.problem}; the states before it are kept, the run goes on")

    def wait(self) -> None:
        """Until the save that is going on is done."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def finish(self) -> None:
        """After the last save; OSError when it failed."""
        self.wait()
        if self.problem:
            raise OSError(f"{self.problem}. Make room and repeat with --resume, it goes on from the last whole state")
