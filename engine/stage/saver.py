"""Saving beside the training: the step waits for a copy of the tensors, not for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

from engine.checkpoint import training_state
from engine.checkpoint.run_info import RunInfo
from engine.checkpoint.weights import add_tied_output, full_state_dict, save_weights
from engine.log.tracker import Tracker
from engine.loop import Progress, Run
from engine.machine import rng
from engine.machine.runtime import Runtime
from engine.options import Output


@dataclass
class Saver:
    """One save at a time, each in a thread. A save that fails is told at once, and again at every log step.

    Args:
        describe: progress -> the content of the .json beside the weights.
        identity, batch, name: see RunInfo, where `name` is `run`.
        group: of the savers' own, when ranks hold shards: the loop's is in use.
    """

    runtime: Runtime
    output: Output
    tracker: Tracker
    describe: Callable[[Progress], dict]
    identity: dict[str, Any]
    batch: dict[str, int]
    name: str
    group: dist.ProcessGroup | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "save"))
    _pending: Future | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, run: Run, progress: Progress) -> None:
        """Copy the tensors now and write them in the thread.

        Every rank must call this; ranks without a shard of their own write nothing.
        """
        self.wait()
        mine = {"random": rng.random_states(), "window_sums": progress.window_sums.cpu().clone()}
        ranks, troubles = zip(*self.runtime.gather((mine, self._sync())), strict=True)
        if trouble := next(filter(None, troubles), None):  # known to every rank: one that saved alone would wait
            self._failed(progress.step, trouble)
            return
        changing = vars(progress) | {"window_counts": asdict(progress.window_counts), "window_sums": None}
        info = RunInfo(
            self.identity,
            self.batch,
            self.name,
            self.tracker.run_id,
            changing,
            run.scaler.state_dict(),
            list(ranks),
            run.compiling.on,
        )
        meta = self.describe(progress)
        weights: dict[str, Tensor] = {}
        if self.group is not None:
            weights = full_state_dict(run.model, keep=self.runtime.is_main_process)  # every rank has to help
        elif not self.runtime.is_main_process:
            return
        tensors = training_state.snapshot_tensors(run.model, run.optimizers)
        if self.group is None:
            weights = add_tied_output({name: tensors[f"model.{name}"] for name, _ in run.model.named_parameters()})
        self._pending = self._thread.submit(self._write, progress.step, tensors, info, weights, meta)

    def _write(self, step: int, tensors: dict, info: RunInfo, weights: dict, meta: dict) -> None:
        main = self.runtime.is_main_process
        try:
            training_state.write(
                self.output.states, step, tensors, info, keep=self.output.keep, main=main, group=self.group
            )
            if main:
                save_weights(self.output.weights, weights, meta)
            self.tracker.repeated_warning = None
        except Exception as error:  # whatever it is, it must not end the run
            self._failed(step, str(error))

    def _sync(self) -> str | None:
        """The log's rows reach the disk before a state counts on them; what went wrong."""
        try:
            self.tracker.sync()
        except OSError as error:
            return f"{self.tracker.path}: {error}"
        return None

    def _failed(self, step: int, reason: str) -> None:
        self.tracker.repeated_warning = f"step {step} was not saved: {reason}"
        self.tracker.warn(f"{self.tracker.repeated_warning}; the states before it are kept, the run goes on")

    def wait(self) -> None:
        """Until the save that is going on is done."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def finish(self) -> None:
        """After the last save; OSError when it failed."""
        self.wait()
        if problem := self.tracker.repeated_warning:
            raise OSError(f"{problem}. Make room and repeat with --resume, it goes on from the last whole state")
