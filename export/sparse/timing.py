"""Time several things in turn."""

import math
import statistics
import time
from collections.abc import Callable, Sequence

_SHORTEST_MS = 1.0  # long against the clocks' resolution
_WARMUP = 2
_LONG_MS = 2000.0  # calls that take this long together are timed in fewer rounds
_FEWEST_ROUNDS = 5


def in_turn(
    calls: Sequence[Callable[[], object]], *, threads: int, rounds: int
) -> list[list[float]]:
    """Time calls against each other, each in every round, so that all meet the same load.

    Args:
        calls: What to time.
        threads: That the calls use. At one, the CPU time of this thread is taken, which other
            programs do not lengthen; else wall time.
        rounds: How often each is timed; down to five times where that takes many seconds. The order
            turns from round to round.
    Returns:
        For each call, milliseconds by round.
    """
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    for call in calls:
        for _ in range(_WARMUP):
            call()
    single = [max(1e-3, _time(call, 1, clock)) for call in calls]
    repeats = [max(1, math.ceil(_SHORTEST_MS / each)) for each in single]
    rounds = min(rounds, max(_FEWEST_ROUNDS, int(_LONG_MS / sum(single))))
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
        for place in order:
            times[place].append(_time(calls[place], repeats[place], clock))
    return times


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' ratios ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _time(call: Callable[[], object], repeats: int, clock: Callable[[], int]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats / 1e6
