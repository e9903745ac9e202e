"""Saving while the training continues: a step waits for a copy of the tensors, not for the disk."""

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
    """Save one state at a time, each in a thread. A failed save is reported at once, and again at every log step.

    Args:
        runtime: Ranks.
        output: The user's flags.
        tracker: Reports what failed.
        metadata: progress -> the content of the .json next to the weights.
        resume_key, batch, run_id: As in RunInfo.
        group: Process group of its own if ranks hold shards: the loop's is in use.
    """

    runtime: Runtime
    output: Output
    tracker: Tracker
    metadata: Callable[[Progress], dict]
    resume_key: dict[str, Any]
    batch: dict[str, int]
    run_id: str
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
        local = {"random": rng.random_states(), "window_sums": progress.window_sums.cpu().clone()}
        ranks, problems = zip(*self.runtime.gather((local, self._sync())), strict=True)
        problem = next(filter(None, problems), None)
        if problem:  # known to every rank: one that saved alone would wait for the others
            self._report_failure(progress.step, problem)
            return
        info = RunInfo(
            resume_key=self.resume_key,
            batch=self.batch,
            run_id=self.run_id,
            tracker_id=self.tracker.run_id,
            progress=vars(progress) | {"window_counts": asdict(progress.window_counts), "window_sums": None},
            scaler=run.scaler.state_dict(),
            ranks=list(ranks),
            compiled=run.compiling.on,
        )
        meta = {"log_ends": self.tracker.rows[-1:], **self.metadata(progress)}  # tells the log from another run's
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
        main, states = self.runtime.is_main_process, self.output.states
        try:
            training_state.write(states, step, tensors, info, keep=self.output.keep, main=main, group=self.group)
            if main:
                save_weights(self.output.weights, weights, meta)
            self.tracker.repeated_warning = None
        except Exception as error:  # whatever it is, it must not end the run
            self._report_failure(step, str(error))

    def _sync(self) -> str | None:
        """Flush the log to disk before a state counts on its rows, and return what went wrong."""
        try:
            self.tracker.sync()
        except OSError as error:
            return f"{self.tracker.path}: {error}"
        return None

    def _report_failure(self, step: int, reason: str) -> None:
        self.tracker.repeated_warning = f"step {step} was not saved: {reason}"
        self.tracker.warn(f"{self.tracker.repeated_warning}; the states before it are kept, the run continues")

    def wait(self) -> None:
        """Wait for the save in progress."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: It failed.
        """
        self.wait()
        if problem := self.tracker.repeated_warning:
            raise OSError(f"{problem}. Make room and repeat with --resume, it continues from the last whole state")
