"""Intervals and tests are the published ones."""

import math

import numpy as np
import pytest

from engine.score import statistics


@pytest.mark.parametrize("right, rows, low, high", [
    (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962),
])  # fmt: skip
def test_wilsons_interval_is_the_published_one(right, rows, low, high):
    assert statistics.wilson(right / rows, rows) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = statistics.bootstrap(x, np.ones(400))
    spread = 1.96 * x.std() / 20
    assert (low, high) == pytest.approx((x.mean() - spread, x.mean() + spread), abs=0.1 * spread)


@pytest.mark.parametrize("won, lost", [(12, 3), (5, 5), (1, 0), (30, 10)])
def test_the_paired_test_of_right_and_wrong_is_mcnemars(won, lost):
    ours = np.array([1.0] * won + [0.0] * lost + [1.0, 0.0] * 20)
    theirs = np.array([0.0] * won + [1.0] * lost + [1.0, 0.0] * 20)
    found, n = statistics.paired(ours, theirs, np.ones(len(ours))), won + lost
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(max(won, lost), n + 1)) / 2**n)
    assert found["p"] == pytest.approx(exact, abs=0.015)
    assert found["difference"] == pytest.approx((won - lost) / len(ours))
    assert found["low"] <= found["difference"] <= found["high"]
