"""Random generators that were restored continue as if nothing had been drawn in between."""

import random

import numpy as np
import torch

from engine.machine import rng


def draw() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]  # noqa: NPY002 (the global one is meant)


def test_every_generator_continues_from_its_saved_state():
    draw()  # somewhere in the middle of what each has made in advance
    states = rng.random_states()
    first, second = draw(), draw()
    rng.set_random_states(states)
    assert [draw(), draw()] == [first, second] and first != second


def test_random_state_of_mps_is_restored(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    rng.set_random_states(rng.random_states())
    assert restored == [torch.tensor([7], dtype=torch.uint8)]
