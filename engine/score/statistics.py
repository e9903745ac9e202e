"""How sure a figure is: intervals, and whether two checkpoints differ on the same rows.

Every figure is a ratio of sums over rows, sum(x) / sum(w): correct answers over answers, bits over bytes, nats over
tokens. Rows are the unit of chance: the turns of one conversation and the bytes of one text are not independent.
"""

import math
from collections.abc import Iterator

import numpy as np

RESAMPLES = 1_000
FLIPS = 10_000
Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share over `rows` rows (Wilson 1927). Unlike the textbook one it is honest at 0 and 1."""
    spread = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    low, high = (share + Z**2 / (2 * rows) + sign * spread for sign in (-1, 1))
    scale = 1 + Z**2 / rows
    return max(0.0, low / scale), min(1.0, high / scale)


def bootstrap(x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of sum(x) / sum(w), x and w (rows,): rows are drawn again with replacement (Efron 1979)."""
    generator = np.random.Generator(np.random.Philox(0))
    ratios = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(x), size=len(x))
        if total := w[drawn].sum():  # rows without text weigh nothing
            ratios.append(x[drawn].sum() / total)
    return tuple(np.quantile(ratios, [0.025, 0.975]).tolist())


def paired(ours: np.ndarray, theirs: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Two checkpoints on the same rows: sum(ours - theirs) / sum(w), its 95 % interval and the p-value.

    The p-value is that of a sign-flip test: were the two alike, each row's difference could as well have been the
    other way round. For right-or-wrong marks it is McNemar's test.
    """
    difference = ours - theirs
    low, high = bootstrap(difference, w)
    observed, moved = abs(difference.sum()), difference[difference != 0]
    extreme = sum(int((abs(flipped) >= observed * (1 - 1e-9)).sum()) for flipped in _flipped_sums(moved))
    return {"difference": float(difference.sum() / w.sum()), "low": low, "high": high, "p": (1 + extreme) / (1 + FLIPS)}


def _flipped_sums(differences: np.ndarray) -> Iterator[np.ndarray]:
    """FLIPS sums with random signs, in parts that fit into memory."""
    generator = np.random.Generator(np.random.Philox(0))
    for _ in range(0, FLIPS, 100):
        signs = generator.integers(2, size=(100, len(differences)), dtype=np.int8) * 2 - 1
        yield signs @ differences
