"""Processes agree on when to stop."""

import types
from dataclasses import replace

import pytest
import torch
from factories import a_run

from engine import loop, options
from engine.loss import Counts
from engine.machine.runtime import Runtime
from engine.machine.stopping import StopRequest


class HalfOfTwo(Runtime):
    """One of two processes that do the same, without the other one; `sent` notes how many numbers it sums."""

    def sum(self, values):
        self.sent.append(len(values))
        return [2 * value for value in values]

    def all_reduce(self, tensor):
        return tensor.mul_(2)


@pytest.mark.parametrize(
    "signal, max_minutes, reason, last_step",
    [("SIGTERM", 0, "SIGTERM", 3), (None, 1e-9, "--max_minutes", 1), ("SIGTERM", 1e-9, "SIGTERM", 1)],
)
def test_processes_meet_once_a_step_and_stop_together(signal, max_minutes, reason, last_step, folder):
    """A signal in a step of one of them stops all after the next; a signal is named before the time."""
    rt, saved = HalfOfTwo(torch.device("cpu"), torch.float32, 0, 2), []
    object.__setattr__(rt, "sent", [])
    run = a_run(folder, batch_size=1, rows_per_step=2, world_size=2)
    output = options.Output(name="x", log_step=100, eval_step=0, save_step=0)
    run = replace(run, runtime=rt, training=options.Training(max_minutes=max_minutes), output=output)
    with StopRequest() as request:
        request.signal = signal if max_minutes else None

        def show(step: int, *_) -> None:
            request.signal = signal if step == 2 else None

        def save(run, progress) -> None:
            saved.append(progress.step)

        tracker = types.SimpleNamespace(log=lambda row: None, show=show)
        assert loop.train(run, loop.Progress(), tracker, save, request) == reason
    assert saved == [last_step]
    assert rt.sent == [7] * last_step + [1]  # five counts and two votes a step; at the save, is all finite


def test_counts_and_votes_are_summed_apart():
    rt = types.SimpleNamespace(sum=lambda values: [2 * value for value in values])
    assert Counts(1.5, 2, 3, 4, 5).over_ranks(rt, 6.0, 7.0) == (Counts(3.0, 4, 6, 8, 10), [12.0, 14.0])
