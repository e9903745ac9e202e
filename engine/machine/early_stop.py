"""Why a run stops before its last step, agreed on by all of its processes."""

import time
from collections.abc import Sequence

from engine.machine.signals import StopRequest

OUT_OF_TIME, SIGNAL = 1, 2


def why_stop(request: StopRequest, max_minutes: float, started: float) -> int:
    """OUT_OF_TIME, SIGNAL or 0, as this process sees it: clocks differ, and a signal may reach one process only."""
    late = max_minutes and (time.perf_counter() - started) / 60 > max_minutes
    return SIGNAL if request.signal else OUT_OF_TIME if late else 0


def votes(why: int) -> tuple[float, float]:
    """One process's reason as numbers that can be summed over all."""
    return float(why == OUT_OF_TIME), float(why == SIGNAL)


def outcome(summed: Sequence[float]) -> int:
    """What the sums of all votes mean; a signal goes before the time."""
    late, signals = summed
    return SIGNAL if signals else OUT_OF_TIME if late else 0
