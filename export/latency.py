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

# A session is up to some percent faster than the next of the same file, by where its memory came
# to lie, and stays so for its life. Each round opens both files anew and counts as one value.
_ROUNDS = 20
_LONGEST_OPENING_MS = 5000.0  # at each setting; large files are opened less often
_WIDEST = 0.1
"""Half the width of an interval around 1, as a share of the median, up to which it says something:
wider ones hold both a gain and a loss that would matter."""

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Setting:
    """Where latency is measured, and where a choice must hold."""

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
    """How long a call of one file takes."""

    wall: Spread
    cpu: Spread | None
    """CPU time of the calling thread. None at more than one thread, where others work too."""


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a sparse file against a dense one, at one setting."""

    setting: Setting
    rounds: int
    """How often both files were opened anew."""
    runs: int
    """Pairs of timed runs, in all rounds."""
    calls_per_run: int
    """Calls timed as one, so that a run is long against the clock's resolution."""
    dense: Timing
    sparse: Timing
    clock: Clock
    """The clock of ``ratio``."""
    ratio: Interval
    """Sparse / dense: median of the rounds' median paired ratios, and its 95% interval."""

    def clocked(self, which: Literal["dense", "sparse"]) -> Spread:
        """The times of one file on the clock of ``ratio``."""
        timing = getattr(self, which)
        return timing.cpu if self.clock == "thread CPU" else timing.wall

    @property
    def finding(self) -> Finding:
        """What the interval shows; no speed-up is claimed where it includes 1.00."""
        # Both ends as they are printed: a verdict must not contradict its own figures.
        low, high = self._speed_up
        if low > 1:
            return "faster"
        if high < 1:
            return "slower"
        wide = (self.ratio.high - self.ratio.low) / 2 > _WIDEST * self.ratio.median
        return "too noisy to judge" if wide else "no speed-up"

    @property
    def verdict(self) -> str:
        """The finding in words, with the interval where it says more."""
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
    """Why a file cannot be called faster; None where it is faster at every setting.

    Args:
        comparisons: One for each setting. At least one.
    Returns:
        "too noisy to judge" where that alone is in the way, else "no speed-up", and the reason.
    """
    assert comparisons
    not_faster = [one for one in comparisons if one.finding not in ("faster", "too noisy to judge")]
    noisy = [one for one in comparisons if one.finding == "too noisy to judge"]
    if not_faster:
        return "no speed-up", "; ".join(f"{one.verdict} at {one.setting}" for one in not_faster)
    if noisy:
        where = "; ".join(f"{one.verdict} at {one.setting}" for one in noisy)
        return "too noisy to judge", f"the machine is {where}"
    return None


def compare_latency(
    dense_path: _Path,
    sparse_path: _Path,
    feeds_of: Callable[[int], Mapping[str, np.ndarray]],
    settings: Sequence[Setting],
    *,
    warmup: int,
    runs: int,
    library: Path | None = None,
    **timing: float,
) -> list[LatencyComparison]:
    """Time two files against each other, in turn, so that both meet the same load.

    At one thread the ratio is taken on the CPU time of the calling thread, which other programs do
    not lengthen; at more threads on wall time.

    Args:
        dense_path: The ONNX file to compare with.
        sparse_path: The ONNX file that is to be judged.
        feeds_of: Batch size -> the inputs of both files.
        settings: Batch sizes and threads of ONNX Runtime.
        warmup: Untimed calls of each file, each time it is opened. There is always one, in which
            the inputs are checked.
        runs: Timed pairs. At least six.
        library: Shared library of custom operators that the sparse file needs. The dense one is
            always opened without.
        timing: More of :func:`time_interleaved`.
    Returns:
        A comparison for each setting.
    Raises:
        ValueError: If ``runs`` is too small, or a file cannot be loaded or does not take the
            inputs.
    """
    comparisons = []
    for setting in settings:
        feeds = feeds_of(setting.batch_size)
        openers = [
            partial(_open, path, feeds, setting.threads, needed)
            for path, needed in ((dense_path, None), (sparse_path, library))
        ]
        untimed = max(0, warmup - 1)
        comparisons.append(compare(openers, setting, warmup=untimed, runs=runs, **timing))
    return comparisons


def compare(
    openers: Sequence[Callable[[], Call]],
    setting: Setting,
    *,
    warmup: int,
    runs: int,
    clocks: Clocks = CLOCKS,
    **timing: float,
) -> LatencyComparison:
    """Compare two things that can be opened and called, dense first.

    The runs of one session are alike in what the session's memory does to them, so a round gives
    one value, the median of its paired ratios. The rounds are independent, and the interval is
    taken over them. The middle of two ratios is taken of their logarithms: the mean of 2 and 1/2
    would call the second thing slower, whichever is second.

    Args:
        openers: As :func:`time_interleaved` takes them.
        setting: What is compared; its threads decide the clock.
        warmup: Untimed calls of each, each time it is opened.
        runs: Timed pairs. At least six.
        clocks: Where times are read.
        timing: More of :func:`time_interleaved`.
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
    clock = clock_for(setting.threads)
    logarithms = [
        median(math.log(sparse.by(clock) / dense.by(clock)) for dense, sparse in pairs)
        for pairs in timed.rounds
    ]
    dense, sparse = zip(*timed.runs, strict=True)
    return LatencyComparison(
        setting=setting,
        rounds=len(timed.rounds),
        runs=len(timed.runs),
        calls_per_run=timed.calls_per_run,
        dense=_summarise(dense, clock),
        sparse=_summarise(sparse, clock),
        clock=clock,
        ratio=_exponentials(median_interval(logarithms)),
    )


def _open(path: _Path, feeds: Mapping[str, np.ndarray], threads: int, library: Path | None) -> Call:
    """Open a file and check, in a first call, that it takes the inputs."""
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
