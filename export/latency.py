"""Compare the latency of two ONNX files in ONNX Runtime."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from mfac_compress.export.intervals import Interval, median_interval
from mfac_compress.export.session import call, open_session
from mfac_compress.export.timing import (
    CLOCKS,
    Call,
    Clock,
    Clocks,
    Run,
    clock_for,
    time_interleaved,
)

Finding = Literal["faster", "slower", "no speed-up", "too noisy to judge"]

# One session may be a few percent faster than the next of the same file, because of its memory
# addresses, and stays so for its lifetime. Each round reopens both files and counts as one value.
_ROUNDS = 20
_LONGEST_OPENING_MS = 5000.0  # for each workload; large files are opened less often
_WIDEST = 0.1
"""Half the width of an interval around 1, as a share of the median, up to which it is conclusive:
a wider one contains both a gain and a loss that would matter."""

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Workload:
    """Batch size and number of threads of a timed call."""

    batch_size: int
    threads: int

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Spread:
    """A median and the distance between the quartiles, in milliseconds per call."""

    median_ms: float
    iqr_ms: float


@dataclass(frozen=True)
class Timing:
    """The time of one call of one file."""

    wall: Spread
    cpu: Spread | None
    """CPU time of the calling thread. None with several threads, since the others work too."""


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a sparse file against a dense one, for one workload."""

    workload: Workload
    rounds: int
    """How often both files were reopened."""
    runs: int
    """Pairs of timed runs, in all rounds."""
    calls_per_run: int
    """Calls timed as one, so that a run is long compared to the clock's resolution."""
    dense: Timing
    sparse: Timing
    clock: Clock
    """The clock of ``ratio``."""
    ratio: Interval
    """Sparse / dense: median of the rounds' median paired ratios, and its 95% interval."""

    def clocked(self, which: Literal["dense", "sparse"]) -> Spread:
        """Return the times of one file on the clock of ``ratio``."""
        timing = getattr(self, which)
        return timing.cpu if self.clock == "thread CPU" else timing.wall

    @property
    def finding(self) -> Finding:
        """What the interval shows; no speed-up is claimed if it includes 1.00."""
        # Both bounds as they are printed: a verdict must not contradict its own figures.
        low, high = self._speed_up
        if low > 1:
            return "faster"
        if high < 1:
            return "slower"
        wide = (self.ratio.high - self.ratio.low) / 2 > _WIDEST * self.ratio.median
        return "too noisy to judge" if wide else "no speed-up"

    @property
    def verdict(self) -> str:
        """The finding in words, with the interval if it adds information."""
        low, high = self._speed_up
        match self.finding:
            case "faster":
                return f"{1 / self.ratio.median:.2f}x faster (95% interval {low:.2f} to {high:.2f})"
            case "slower":
                return (
                    f"{self.ratio.median:.2f}x slower "
                    f"(95% interval {self.ratio.low:.2f} to {self.ratio.high:.2f})"
                )
            case "too noisy to judge":
                return f"too noisy to judge (95% interval {low:.2f}x to {high:.2f}x as fast)"
            case other:
                return other

    @property
    def _speed_up(self) -> tuple[float, float]:
        """The interval of dense / sparse, as it is printed."""
        return round(1 / self.ratio.high, 2), round(1 / self.ratio.low, 2)


def why_not_faster(comparisons: Sequence[LatencyComparison]) -> tuple[Finding, str] | None:
    """Return why a file cannot be called faster; None if it is faster for every workload.

    Args:
        comparisons: One for each workload. At least one.
    Returns:
        "too noisy to judge" if that is the only obstacle, else "no speed-up", and the reason.
    """
    assert comparisons
    not_faster = [one for one in comparisons if one.finding not in ("faster", "too noisy to judge")]
    noisy = [one for one in comparisons if one.finding == "too noisy to judge"]
    if not_faster:
        return "no speed-up", "; ".join(f"{one.verdict} at {one.workload}" for one in not_faster)
    if noisy:
        where = "; ".join(f"{one.verdict} at {one.workload}" for one in noisy)
        return "too noisy to judge", f"the machine is {where}"
    return None


def compare_latency(
    dense_path: _Path,
    sparse_path: _Path,
    feeds_of: Callable[[int], Mapping[str, np.ndarray]],
    workloads: Sequence[Workload],
    *,
    warmup: int,
    runs: int,
    library: Path | None = None,
    **timing: float,
) -> list[LatencyComparison]:
    """Time two files, interleaved, so that both run under the same load.

    With one thread the ratio is that of CPU times of the calling thread, which other programs do
    not lengthen; with several threads that of wall times.

    Args:
        dense_path: The ONNX file to compare with.
        sparse_path: The ONNX file to be judged.
        feeds_of: Batch size -> the inputs of both files.
        workloads: Batch sizes and threads of ONNX Runtime.
        warmup: Untimed calls of each file, each time it is opened. There is always one, which
            checks the inputs.
        runs: Timed pairs. At least six.
        library: Shared library of custom operators that the sparse file needs. The dense file is
            always opened without it.
        timing: Further arguments of :func:`time_interleaved`.
    Returns:
        A comparison for each workload.
    Raises:
        ValueError: If ``runs`` is too small, or a file cannot be loaded or does not take the
            inputs.
    """
    comparisons = []
    for workload in workloads:
        feeds = feeds_of(workload.batch_size)
        openers = [
            partial(_open, path, feeds, workload.threads, needed)
            for path, needed in ((dense_path, None), (sparse_path, library))
        ]
        untimed = max(0, warmup - 1)
        comparisons.append(compare(openers, workload, warmup=untimed, runs=runs, **timing))
    return comparisons


def compare(
    openers: Sequence[Callable[[], Call]],
    workload: Workload,
    *,
    warmup: int,
    runs: int,
    clocks: Clocks = CLOCKS,
    **timing: float,
) -> LatencyComparison:
    """Compare two candidates that can be opened and called, the dense one first.

    The runs of one session share the effects of its memory addresses, so a round gives one value,
    the median of its paired ratios. The rounds are independent, and the interval is that of their
    values. Ratios are averaged by their logarithms: the mean of 2 and 1/2 would call the second
    candidate slower, whichever is second.

    Args:
        openers: As :func:`time_interleaved` takes them.
        workload: Batch size and threads; the threads decide the clock.
        warmup: Untimed calls of each, each time it is opened.
        runs: Timed pairs. At least six.
        clocks: The clocks to read.
        timing: Further arguments of :func:`time_interleaved`.
    """
    timed = time_interleaved(
        openers,
        rounds=_ROUNDS,
        runs=runs,
        warmup=warmup,
        longest_opening_ms=_LONGEST_OPENING_MS,
        clocks=clocks,
        **timing,
    )
    clock = clock_for(workload.threads)
    logarithms = [
        median(math.log(sparse.by(clock) / dense.by(clock)) for dense, sparse in pairs)
        for pairs in timed.rounds
    ]
    dense, sparse = zip(*timed.runs, strict=True)
    return LatencyComparison(
        workload=workload,
        rounds=len(timed.rounds),
        runs=len(timed.runs),
        calls_per_run=timed.calls_per_run,
        dense=_summarise(dense, clock),
        sparse=_summarise(sparse, clock),
        clock=clock,
        ratio=_exponentials(median_interval(logarithms)),
    )


def _open(path: _Path, feeds: Mapping[str, np.ndarray], threads: int, library: Path | None) -> Call:
    """Open a file and check with a first call that it takes the inputs."""
    session = open_session(path, threads=threads, library=library)
    call(session, feeds)
    return partial(session.run, None, dict(feeds))


def _exponentials(logarithms: Interval) -> Interval:
    return Interval(*map(math.exp, astuple(logarithms)))


def _summarise(runs: Sequence[Run], clock: Clock) -> Timing:
    cpu = _spread([run.cpu for run in runs]) if clock == "thread CPU" else None
    return Timing(wall=_spread([run.wall for run in runs]), cpu=cpu)


def _spread(milliseconds: Sequence[float]) -> Spread:
    low, middle, high = np.percentile(milliseconds, [25, 50, 75])
    return Spread(float(middle), float(high - low))
