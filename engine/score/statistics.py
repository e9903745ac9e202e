"""How sure a figure is: intervals, and whether two checkpoints differ on the same rows.

Every figure is a ratio of sums over rows, sum(x) / sum(w): correct answers over answers, bits over bytes, nats over
tokens. Rows are the unit of chance: the turns of one conversation and the bytes of one text are not independent. How
often the intervals hold the truth at 3 to 100 rows was simulated: docs/evaluation.md, tests/score/test_statistics.py.
"""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np

FLIPS = 10_000
Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations

Interval = tuple[float, float] | tuple[None, None]  # None: one row says nothing about how rows differ


def effective_sample_size(w: np.ndarray) -> float:
    """How many rows of equal weight say as much as rows of the weights w (rows,) (Kish 1965)."""
    return float(w.sum() ** 2 / (w @ w))


def wilson(share: float, rows: float) -> tuple[float, float]:
    """The 95 % interval of a share over `rows` rows (Wilson 1927). Unlike the textbook one it is honest at 0 and 1.

    Also for the mean of marks between 0 and 1, as F1: they differ by less than right-or-wrong marks of that mean.
    """
    spread = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    low, high = (share + Z**2 / (2 * rows) + sign * spread for sign in (-1, 1))
    scale = 1 + Z**2 / rows
    return max(0.0, low / scale), min(1.0, high / scale)


@cache
def student(degrees: int) -> float:
    """How many standard errors hold 95 % of Student's t with `degrees` of freedom (Student 1908)."""
    if degrees > 1_000:
        return Z

    def inside(t: float) -> float:
        """The share within t standard errors: a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
        angle, odd = math.atan(t / math.sqrt(degrees)), degrees % 2
        total, term = 0.0, math.cos(angle) if odd else 1.0
        for power in range(odd + 1, degrees, 2):
            total += term
            term *= math.cos(angle) ** 2 * power / (power + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 1.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return low


def t_interval(x: np.ndarray, w: np.ndarray) -> Interval:
    """The 95 % interval of sum(x) / sum(w), x and w (rows,): Student's t around a jackknife's standard error.

    Unlike the bootstrap's it is wide enough for few rows: one of 3 rows holds the truth 72 times in 100. Where a few
    long rows weigh most, these are the rows that are counted.
    """
    x, w = x[w > 0], w[w > 0]
    if len(w) < 2:
        return None, None
    ratio, total = x.sum() / w.sum(), w.sum()
    moves = (x - ratio * w) / (total - w)  # what leaving a row out changes
    spread = math.sqrt((len(w) - 1) / len(w) * float(moves @ moves))
    spread *= student(max(1, int(effective_sample_size(w) - 1)))
    return float(ratio) - spread, float(ratio) + spread


def bonett_price_interval(difference: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the change of a share: one more row won and one more lost (Bonett and Price 2012).

    Without them rows that all agree would make a difference of exactly 0 certain.
    """
    w = np.append(w, [w.mean()] * 2)
    difference = np.append(difference, [w[-1], -w[-1]])
    middle = difference.sum() / w.sum()
    error = difference - middle * w
    spread = Z * math.sqrt(float(error @ error)) / w.sum()
    return max(-1.0, float(middle) - spread), min(1.0, float(middle) + spread)


def paired(ours: np.ndarray, theirs: np.ndarray, w: np.ndarray, share: bool = False) -> dict[str, float | None]:
    """Two checkpoints on the same rows: sum(ours - theirs) / sum(w), its 95 % interval and the p-value.

    `share`: of marks from 0 to 1. The p-value is that of a sign-flip test: were the two alike, each row's difference
    could as well have been the other way round. For right-or-wrong marks it is McNemar's test.
    """
    difference = ours - theirs
    low, high = (bonett_price_interval if share else t_interval)(difference, w)
    observed, moved = abs(difference.sum()), difference[difference != 0]
    extreme = sum(int((abs(flipped) >= observed * (1 - 1e-9)).sum()) for flipped in _flipped_sums(moved))
    return {"difference": float(difference.sum() / w.sum()), "low": low, "high": high, "p": (1 + extreme) / (1 + FLIPS)}


def _flipped_sums(differences: np.ndarray) -> Iterator[np.ndarray]:
    """FLIPS sums with random signs, in parts that fit into memory."""
    generator = np.random.Generator(np.random.Philox(0))
    for _ in range(0, FLIPS, 100):
        signs = generator.integers(2, size=(100, len(differences)), dtype=np.int8) * 2 - 1
        yield signs @ differences
