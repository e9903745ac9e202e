"""Intervals hold the truth as often as docs/evaluation.md says, also of few rows."""

import numpy as np
import pytest

from engine.score import statistics

ROWS = (3, 10, 30, 100)
RUNS = 600


@pytest.fixture(scope="module")
def stats():
    return pytest.importorskip("scipy.stats")


def losses(draw, n):
    """Answers of 2 to 39 tokens that cost 2 nats each in the mean, with a long tail to the right."""
    tokens = draw.integers(2, 40, n).astype(float)
    return tokens * draw.gamma(2.0, 1.0, n), tokens, 2.0


def texts(draw, n):
    """Texts whose sizes differ by e, at 1.5 bits per byte."""
    size = draw.lognormal(5, 1, n)
    return size * draw.gamma(25, 1.5 / 25, n), size, 1.5


def overlaps(draw, n):
    """Token F1: mostly 0 or 1, sometimes between."""
    kind = draw.random(n)
    return np.where(kind < 0.8, 1.0, np.where(kind < 0.9, 0.0, draw.random(n))), np.ones(n), 0.85


def right(share):
    return lambda draw, n: ((draw.random(n) < share).astype(float), np.ones(n), share)


def turns(draw, n):
    """Conversations of 1 to 8 turns that are alike within a conversation."""
    count = draw.integers(1, 9, n).astype(float)
    return count * (draw.random(n) < 0.7), count, 0.7


def won_and_lost(draw, n):
    """Changes of right-or-wrong marks: 10 % won, 5 % lost."""
    kind = draw.random(n)
    return np.where(kind < 0.1, 1.0, np.where(kind < 0.15, -1.0, 0.0)), np.ones(n), 0.05


def wilson(x, w):
    return statistics.wilson(x.sum() / w.sum(), statistics.effective_sample_size(w))


def coverage(source, interval, n, runs=RUNS):
    """How often the interval holds the truth."""
    draw, held = np.random.default_rng(n), 0
    for _ in range(runs):
        x, w, truth = source(draw, n)
        low, high = interval(x, w)
        held += low <= truth <= high
    return held / runs


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize(
    "source, interval, least",
    [
        (losses, statistics.t_interval, 0.90),
        (texts, statistics.t_interval, 0.91),
        (overlaps, wilson, 0.93),
        (right(0.5), wilson, 0.92),
        (right(0.9), wilson, 0.91),
        (turns, wilson, 0.92),
        (won_and_lost, statistics.bonett_price_interval, 0.93),
    ],
    ids=["losses", "texts", "f1", "half", "nine tenths", "turns", "changes"],
)
def test_an_interval_holds_the_truth_at_3_10_30_and_100_rows(source, interval, least, n):
    assert coverage(source, interval, n) >= least


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 29, 30, 99, 999, 5000])
def test_the_quantile_is_students(stats, degrees):
    assert statistics.student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)
    if degrees <= 1000:
        assert statistics.student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_of_equal_weights_it_is_the_t_interval_of_a_mean(stats):
    x = np.array([1.0, 2.0, 4.0, 4.5, 7.0])
    expected = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    assert statistics.t_interval(x, np.ones(5)) == pytest.approx(expected)
    assert statistics.t_interval(3 * x, np.full(5, 3.0)) == pytest.approx(expected)


def test_wilson_is_scipys(stats):
    found = stats.binomtest(9, 12).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(9 / 12, 12) == pytest.approx((found.low, found.high), abs=1e-6)


def test_one_row_has_no_interval_instead_of_one_without_width():
    assert statistics.t_interval(np.array([3.0]), np.array([2.0])) == (None, None)
    assert statistics.t_interval(np.array([3.0, 0.0]), np.array([2.0, 0.0])) == (None, None)
    found = statistics.paired(np.array([3.0]), np.array([1.0]), np.ones(1))
    assert (found["difference"], found["low"], found["p"]) == (2.0, None, 1.0)


def test_a_share_that_no_row_changed_may_still_have_changed():
    found = statistics.paired(np.ones(10), np.ones(10), np.ones(10), share=True)
    assert found["difference"] == 0 and found["low"] < -0.1 and found["high"] > 0.1 and found["p"] == 1


@pytest.mark.parametrize("won, lost", [(9, 2), (6, 6), (3, 0)])
def test_the_paired_test_is_scipys_binomial_test_of_those_that_changed(stats, won, lost):
    ours = np.array([1.0] * won + [0.0] * lost + [1.0] * 20)
    theirs = np.array([0.0] * won + [1.0] * lost + [1.0] * 20)
    found = statistics.paired(ours, theirs, np.ones(len(ours)), share=True)
    assert found["p"] == pytest.approx(stats.binomtest(won, won + lost).pvalue, abs=0.015)
    assert found["low"] <= found["difference"] <= found["high"]
