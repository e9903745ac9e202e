"""Random generators that were put back go on as if nothing had been drawn meanwhile."""

import random

import numpy as np
import torch

from engine.machine import rng


def draw() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]  # noqa: NPY002 (the global one is meant)


def test_every_generator_goes_on_where_it_was_saved():
    draw()  # somewhere in the middle of what each has made in advance
    states = rng.random_states()
    first, second = draw(), draw()
    rng.set_random_states(states)
    assert [draw(), draw()] == [first, second] and first != second
