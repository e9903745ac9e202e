"""Intervals cover the truth as often as docs/evaluation.md says, also for few rows."""

import math

import numpy as np
import pytest

from engine.score import statistics

ROWS = (3, 10, 30, 100)
RUNS = 600


@pytest.fixture(scope="module")
def stats():
    return pytest.importorskip("scipy.stats")


def losses(draw, n):
    """Draw answers of 2 to 39 tokens at 2 nats each in the mean, with a long tail to the right."""
    tokens = draw.integers(2, 40, n).astype(float)
    return tokens * draw.gamma(2.0, 1.0, n), tokens, 2.0


def texts(draw, n):
    """Draw texts whose sizes differ by a factor of e, at 1.5 bits per byte."""
    size = draw.lognormal(5, 1, n)
    return size * draw.gamma(25, 1.5 / 25, n), size, 1.5


def overlaps(draw, n):
    """Draw token F1: mostly 0 or 1, sometimes between."""
    uniform = draw.random(n)
    return np.where(uniform < 0.8, 1.0, np.where(uniform < 0.9, 0.0, draw.random(n))), np.ones(n), 0.85


def right(share):
    return lambda draw, n: ((draw.random(n) < share).astype(float), np.ones(n), share)


def turns(draw, n):
    """Draw conversations of 1 to 8 turns, all of them right or all wrong."""
    num_turns = draw.integers(1, 9, n).astype(float)
    return num_turns * (draw.random(n) < 0.7), num_turns, 0.7


def won_and_lost(draw, n):
    """Draw changes of right-or-wrong scores: 10 % won, 5 % lost."""
    uniform = draw.random(n)
    return np.where(uniform < 0.1, 1.0, np.where(uniform < 0.15, -1.0, 0.0)), np.ones(n), 0.05


def wilson_interval(x, w):
    return statistics.wilson_interval(x.sum() / w.sum(), statistics.effective_sample_size(w))


def coverage(source, interval, n, runs=RUNS):
    """Return the share of files whose interval covers the truth."""
    draw, covered = np.random.default_rng(n), 0
    for _ in range(runs):
        x, w, truth = source(draw, n)
        low, high = interval(x, w)
        covered += low <= truth <= high
    return covered / runs


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize(
    "source, interval, least",
    [
        (losses, statistics.t_interval, 0.90),
        (texts, statistics.t_interval, 0.91),
        (overlaps, wilson_interval, 0.93),
        (right(0.5), wilson_interval, 0.92),
        (right(0.9), wilson_interval, 0.91),
        (turns, wilson_interval, 0.92),
        (won_and_lost, statistics.bonett_price_interval, 0.93),
    ],
    ids=["losses", "texts", "f1", "half", "nine tenths", "turns", "changes"],
)
def test_interval_covers_the_truth_as_documented(source, interval, least, n):
    assert coverage(source, interval, n) >= least


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 29, 30, 99, 999, 5000])
def test_t_quantile_equals_scipys(stats, degrees):
    assert statistics.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)
    if degrees <= 1000:
        assert statistics.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_t_interval_of_equal_weights_is_that_of_a_mean(stats):
    x = np.array([1.0, 2.0, 4.0, 4.5, 7.0])
    expected = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    assert statistics.t_interval(x, np.ones(5)) == pytest.approx(expected)
    assert statistics.t_interval(3 * x, np.full(5, 3.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "right, rows, low, high",
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_equals_published_values(right, rows, low, high):
    assert statistics.wilson_interval(right / rows, rows) == pytest.approx((low, high), abs=1e-4)


def test_single_row_has_no_interval():
    assert statistics.t_interval(np.array([3.0]), np.array([2.0])) == (None, None)
    assert statistics.t_interval(np.array([3.0, 0.0]), np.array([2.0, 0.0])) == (None, None)
    change = statistics.paired_test(np.array([3.0]), np.array([1.0]), np.ones(1))
    assert (change["difference"], change["low"], change["p"]) == (2.0, None, 1.0)


def test_unchanged_proportion_has_an_interval_of_some_width():
    change = statistics.paired_test(np.ones(10), np.ones(10), np.ones(10), proportion=True)
    assert change["difference"] == 0 and change["low"] < -0.1 and change["high"] > 0.1 and change["p"] == 1


@pytest.mark.parametrize("proportion", [False, True])
@pytest.mark.parametrize("won, lost", [(12, 3), (9, 2), (5, 5), (1, 0), (3, 0), (30, 10)])
def test_paired_test_of_right_and_wrong_is_mcnemars(won, lost, proportion):
    after = np.array([1.0] * won + [0.0] * lost + [1.0, 0.0] * 20)
    before = np.array([0.0] * won + [1.0] * lost + [1.0, 0.0] * 20)
    change, n = statistics.paired_test(after, before, np.ones(len(after)), proportion), won + lost
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(max(won, lost), n + 1)) / 2**n)
    assert change["p"] == pytest.approx(exact, abs=0.015)
    assert change["difference"] == pytest.approx((won - lost) / len(after))
    assert change["low"] <= change["difference"] <= change["high"]
