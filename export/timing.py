"""Time several candidates, interleaved, so that all run under the same load."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Call = Callable[[], object]
Clock = Literal["thread CPU", "wall"]

_T = TypeVar("_T")
_SHORTEST_RUN_MS = 2.0  # long compared to the clocks' resolution and the cost of reading them
_TRIALS = 3
_FEWEST_RUNS = 6  # the minimum for an interval of the median
_FEWEST_ROUNDS = 10


class Clocks(NamedTuple):
    """The clocks to read, in nanoseconds. Simulations use clocks of their own."""

    wall: Callable[[], int] = time.perf_counter_ns
    cpu: Callable[[], int] = time.thread_time_ns
    """CPU time of the calling thread."""


CLOCKS = Clocks()


class Run(NamedTuple):
    """One timed run, in milliseconds per call."""

    wall: float
    cpu: float

    def by(self, clock: Clock) -> float:
        """Return its time on one of the clocks."""
        return self.cpu if clock == "thread CPU" else self.wall


@dataclass(frozen=True)
class Timed:
    """The times of n candidates.

    Attributes:
        calls_per_run: Calls timed as one.
        rounds: The runs of each candidate by round. Shape ``[rounds][runs][n]``.
    """

    calls_per_run: int
    rounds: tuple[tuple[tuple[Run, ...], ...], ...]

    @property
    def runs(self) -> list[tuple[Run, ...]]:
        """The runs of all rounds. Shape ``[runs][n]``."""
        return [run for timed in self.rounds for run in timed]

    def times(self, clock: Clock) -> list[list[float]]:
        """Return milliseconds per call. Shape ``[n][runs]``."""
        return [[run.by(clock) for run in runs] for runs in zip(*self.runs, strict=True)]


def clock_for(threads: int) -> Clock:
    """Return the clock on which to compare.

    With one thread ONNX Runtime computes in the calling thread, whose CPU time other programs do
    not lengthen. With several threads the others work too, and only wall time includes their work.
    """
    return "thread CPU" if threads == 1 else "wall"


def time_interleaved(
    openers: Sequence[Callable[[], Call]],
    *,
    rounds: int,
    runs: int,
    warmup: int,
    shortest_run_ms: float = _SHORTEST_RUN_MS,
    longest_ms: float = math.inf,
    longest_opening_ms: float = math.inf,
    clocks: Clocks = CLOCKS,
) -> Timed:
    """Time calls alternately, in rounds; each round reopens all candidates.

    Each round begins with the next candidate, in opening and in calling; within a round the order
    of calls is reversed from run to run. So each candidate comes first, last and after each other
    one equally often.

    Args:
        openers: Each opens one candidate and returns the call to time.
        rounds: How often all candidates are opened; at most once per run.
        runs: Timed runs of each candidate, distributed over the rounds.
        warmup: Untimed calls of each candidate, each time it is opened.
        shortest_run_ms: Minimum wall time of a run: shorter calls are repeated within it.
        longest_ms: Approximate limit of the wall time of all runs. If calls take too long for it,
            there are fewer runs, down to six.
        longest_opening_ms: Approximate limit of the wall time of opening and warm-up in all rounds.
            If they take longer, there are fewer rounds, down to ten.
        clocks: The clocks to read.
    """
    start = clocks.wall()
    calls = _open(openers, warmup, first=0)
    opening_ms = max((clocks.wall() - start) / 1e6, 1e-6)
    if rounds * opening_ms > longest_opening_ms:
        rounds = min(rounds, max(_FEWEST_ROUNDS, int(longest_opening_ms / opening_ms)))
    trials = [_time(call, 1, clocks).wall for call in calls for _ in range(_TRIALS)]
    repeats = max(1, math.ceil(shortest_run_ms / max(min(trials), 1e-6)))
    expected_ms = repeats * sum(trials) / _TRIALS
    if runs * expected_ms > longest_ms:
        runs = min(runs, max(_FEWEST_RUNS, int(longest_ms / expected_ms)))
    timed = []
    for number, share in enumerate(np.array_split(range(runs), min(rounds, runs))):
        if number > 0:
            calls.clear()  # closed before the next ones are opened: large models need the memory
            calls = _open(openers, warmup, first=number)
        timed.append(
            tuple(
                _in_turn(calls, lambda call: _time(call, repeats, clocks), number, turn % 2 == 1)
                for turn in range(len(share))
            )
        )
    return Timed(repeats, tuple(timed))


def _open(openers: Sequence[Callable[[], Call]], warmup: int, first: int) -> list[Call]:
    calls = list(_in_turn(openers, lambda opener: opener(), first))
    for _ in range(warmup):
        _in_turn(calls, lambda call: call(), first)
    return calls


def _in_turn(
    things: Sequence[_T], act: Callable[[_T], object], first: int, reverse: bool = False
) -> tuple:
    """Act on all, beginning with one of them, or in the reverse of that order.

    Returns:
        The results in the original order.
    """
    order = [(first + place) % len(things) for place in range(len(things))]
    results = {place: act(things[place]) for place in (reversed(order) if reverse else order)}
    return tuple(results[place] for place in range(len(things)))


def _time(call: Call, repeats: int, clocks: Clocks) -> Run:
    """Time ``repeats`` calls as one run."""
    cpu, wall = clocks.cpu(), clocks.wall()
    for _ in range(repeats):
        call()
    wall, cpu = clocks.wall() - wall, clocks.cpu() - cpu
    return Run(wall / repeats / 1e6, cpu / repeats / 1e6)
