"""Uncertainty of a metric: confidence intervals, and paired tests of two checkpoints on the same rows.

Every metric is a ratio of sums over rows, sum(x) / sum(w): correct answers over answers, bits over bytes, nats over
tokens. The sampling unit is the row, not the turn: turns of one conversation and bytes of one text are not
independent. The coverage of the intervals was simulated at 3 to 100 rows: docs/evaluation.md and
tests/score/test_statistics.py.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache

import numpy as np

NUM_FLIPS = 10_000
Z = 1.959964  # 97.5 % quantile of the standard normal distribution

Interval = tuple[float, float] | tuple[None, None]  # None: a single row says nothing about how rows differ


def effective_sample_size(w: np.ndarray) -> float:
    """Return the number of equally weighted rows that tell as much as rows of weights `w`, (rows,) (Kish 1965)."""
    return float(w.sum() ** 2 / (w @ w))


def wilson_interval(p: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion `p` of `n` rows (Wilson 1927). It holds at 0 and 1, too.

    Also for the mean of scores between 0 and 1, as F1: their variance is below that of right-or-wrong scores.
    """
    spread = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    center = p + Z**2 / (2 * n)
    scale = 1 + Z**2 / n
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


@cache
def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution with `degrees` of freedom (Student 1908)."""
    if degrees > 1_000:
        return Z

    def central_probability(t: float) -> float:
        """Return P(|T| < t), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
        angle, odd = math.atan(t / math.sqrt(degrees)), degrees % 2
        term = math.cos(angle) if odd else 1.0
        total = 0.0
        for power in range(odd + 1, degrees, 2):
            total += term
            term *= math.cos(angle) ** 2 * power / (power + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    steps = range(2**49)  # of 2^-44, up to 32
    return bisect_left(steps, 0.95, key=lambda step: central_probability(step / 2**44)) / 2**44


def t_interval(x: np.ndarray, w: np.ndarray) -> Interval:
    """Return the 95 % interval of sum(x) / sum(w): Student's t with the jackknife's standard error.

    Unlike a bootstrap interval it is wide enough for few rows: that of 3 rows covers the truth 72 times in 100. Where
    a few long rows have most of the weight, the degrees of freedom are those of that many rows.

    Args:
        x, w: Numerator and weight of each row, (rows,) float64.
    """
    x, w = x[w > 0], w[w > 0]
    if len(w) < 2:
        return None, None
    ratio, total = x.sum() / w.sum(), w.sum()
    changes = (x - ratio * w) / (total - w)  # of the ratio, when a row is left out
    spread = math.sqrt((len(w) - 1) / len(w) * float(changes @ changes))
    spread *= t_quantile(max(1, int(effective_sample_size(w) - 1)))
    return float(ratio) - spread, float(ratio) + spread


def bonett_price_interval(difference: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a change of a proportion: add one row won and one lost (Bonett and Price 2012).

    Without them, rows that all agree would make a difference of exactly 0 certain.

    Args:
        difference, w: Change of the numerator and weight of each row, (rows,) float64.
    """
    w = np.append(w, [w.mean()] * 2)
    difference = np.append(difference, [w[-1], -w[-1]])
    center = difference.sum() / w.sum()
    error = difference - center * w
    spread = Z * math.sqrt(float(error @ error)) / w.sum()
    return max(-1.0, float(center) - spread), min(1.0, float(center) + spread)


def paired_test(
    after: np.ndarray, before: np.ndarray, w: np.ndarray, proportion: bool = False
) -> dict[str, float | None]:
    """Compare two checkpoints on the same rows: sum(after - before) / sum(w), its 95 % interval and its p-value.

    The p-value is that of a sign-flip test: between equal checkpoints each row's difference could as well have had the
    other sign. For right-or-wrong scores it is McNemar's test.

    Args:
        after, before, w: Numerators of the two checkpoints and weight of each row, (rows,) float64.
        proportion: The scores are between 0 and 1.
    """
    difference = after - before
    interval = bonett_price_interval if proportion else t_interval
    low, high = interval(difference, w)
    at_least = abs(difference.sum()) * (1 - 1e-9)
    extreme = sum(int((abs(flipped) >= at_least).sum()) for flipped in _flipped_sums(difference[difference != 0]))
    p = (1 + extreme) / (1 + NUM_FLIPS)
    return {"difference": float(difference.sum() / w.sum()), "low": low, "high": high, "p": p}


def _flipped_sums(differences: np.ndarray) -> Iterator[np.ndarray]:
    """Yield NUM_FLIPS sums with random signs, in parts that fit into memory."""
    generator = np.random.Generator(np.random.Philox(0))
    for _ in range(0, NUM_FLIPS, 100):
        signs = generator.integers(2, size=(100, len(differences)), dtype=np.int8) * 2 - 1
        yield signs @ differences
