"""Compare the latency of ONNX files in ONNX Runtime."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
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
    Timed,
    clock_for,
    time_interleaved,
)
from mfac_compress.export.variant import Variant
from mfac_compress.export.workload import Workload

Finding = Literal["faster", "slower", "no speed-up", "too noisy to judge"]
FeedsOf = Callable[[Workload], Mapping[str, np.ndarray]]
"""The inputs of a model for a workload, by their names in its file."""

# One session may be a few percent faster than the next of the same file, because of its memory
# addresses, and stays so for its lifetime. Each round reopens all files and counts as one value.
_ROUNDS = 20
_LONGEST_OPENING_MS = 5000.0  # for each workload; large files are opened less often
_WIDEST = 0.1
"""Half the width of an interval around 1, as a share of the median, up to which it is conclusive:
a wider one contains both a gain and a loss that would matter."""


@dataclass(frozen=True)
class Spread:
    """A median and the distance between the quartiles, in milliseconds per call."""

    median_ms: float
    """Median."""
    iqr_ms: float
    """Distance between the quartiles."""


@dataclass(frozen=True)
class Timing:
    """The time of one call of one file."""

    wall: Spread
    """By the clock on the wall."""
    cpu: Spread | None
    """CPU time of the calling thread. None with several threads, since the others work too."""

    def by(self, clock: Clock) -> Spread:
        """Return the time on one of the clocks."""
        return self.cpu if self.cpu and clock == "thread CPU" else self.wall


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a file against another one, for one workload."""

    reference: str
    """Name of the file that it is compared with."""
    workload: Workload
    """What a call was."""
    rounds: int
    """How often all files were reopened; each round gives one value of ``ratio``'s interval."""
    runs: int
    """Timed runs of each file, interleaved, in all rounds."""
    calls_per_run: int
    """Calls timed as one, so that a run is long compared to the clock's resolution."""
    reference_time: Timing
    """Time of a call of the reference."""
    time: Timing
    """Time of a call of the file."""
    clock: Clock
    """The clock of ``ratio``: CPU time of the calling thread with one thread, else wall time."""
    ratio: Interval
    """Time / reference's time: median of the rounds' median paired ratios, and its 95% interval."""
    finding: Finding
    """What the interval shows. Where it includes 1: "no speed-up", or "too noisy to judge" if half
    its width is more than 10% of the ratio."""
    verdict: str
    """The finding in words."""


def finding_of(ratio: Interval) -> Finding:
    """Return what an interval of time / reference's time shows.

    No speed-up is claimed if it includes 1.00.
    """
    # Both bounds as they are printed: a verdict must not contradict its own figures.
    low, high = _speed_up(ratio)
    if low > 1:
        return "faster"
    if high < 1:
        return "slower"
    wide = (ratio.high - ratio.low) / 2 > _WIDEST * ratio.median
    return "too noisy to judge" if wide else "no speed-up"


def in_words(ratio: Interval) -> str:
    """Return :func:`finding_of` in words, with the interval if it adds information."""
    low, high = _speed_up(ratio)
    match finding_of(ratio):
        case "faster":
            return f"{1 / ratio.median:.2f}x faster (95% interval {low:.2f} to {high:.2f})"
        case "slower":
            return f"{ratio.median:.2f}x slower (95% interval {ratio.low:.2f} to {ratio.high:.2f})"
        case "too noisy to judge":
            return f"too noisy to judge (95% interval {low:.2f}x to {high:.2f}x as fast)"
        case other:
            return other


def _speed_up(ratio: Interval) -> tuple[float, float]:
    """Return the interval of reference's time / time, as it is printed."""
    return round(1 / ratio.high, 2), round(1 / ratio.low, 2)


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
    reference: Variant,
    variants: Sequence[Variant],
    feeds: FeedsOf,
    workloads: Sequence[Workload],
    *,
    warmup: int,
    runs: int,
    also: Sequence[tuple[str, str]] = (),
    **timing: float,
) -> dict[str, tuple[LatencyComparison, ...]]:
    """Time files against a reference, all of them interleaved, so that they run under one load.

    With one thread the ratio is that of CPU times of the calling thread, which other programs do
    not lengthen; with several threads that of wall times.

    Args:
        reference: The file to compare with.
        variants: The files to be judged. Each is opened with its own library.
        feeds: The inputs of all files.
        workloads: Batch sizes, threads of ONNX Runtime and lengths.
        warmup: Untimed calls of each file, each time it is opened. There is always one, which
            checks the inputs.
        runs: Timed runs of each file. At least six.
        also: Further pairs of names of variants: of a file, and of the one that it is compared
            with, too.
        timing: Further arguments of :func:`time_interleaved`.
    Returns:
        By variant, a comparison with the reference for each workload, then the further ones.
    Raises:
        ValueError: If ``runs`` is too small, or a file cannot be loaded or does not take the
            inputs.
    """
    names = [reference.name, *(variant.name for variant in variants)]
    pairs = [(name, reference.name) for name in names[1:]] + [*also]
    compared: dict[tuple[str, str], list[LatencyComparison]] = {pair: [] for pair in pairs}
    for workload in workloads if variants else ():
        inputs = feeds(workload)
        openers = [
            partial(_open, each, inputs, workload.threads) for each in (reference, *variants)
        ]
        untimed = max(0, warmup - 1)
        found = compare(
            openers, workload, names=names, pairs=pairs, warmup=untimed, runs=runs, **timing
        )
        for pair, comparison in zip(pairs, found, strict=True):
            compared[pair].append(comparison)
    return {
        name: tuple(one for pair, found in compared.items() if pair[0] == name for one in found)
        for name in names[1:]
    }


def compare(
    openers: Sequence[Callable[[], Call]],
    workload: Workload,
    *,
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    warmup: int,
    runs: int,
    clocks: Clocks = CLOCKS,
    **timing: float,
) -> list[LatencyComparison]:
    """Compare candidates that can be opened and called with each other.

    The runs of one session share the effects of its memory addresses, so a round gives one value,
    the median of its paired ratios. The rounds are independent, and the interval is that of their
    values. Ratios are averaged by their logarithms: the mean of 2 and 1/2 would call the second
    candidate slower, whichever is second.

    Args:
        openers: As :func:`time_interleaved` takes them.
        workload: The threads decide the clock.
        names: Of the candidates.
        pairs: Names of a candidate, and of the one that it is compared with.
        warmup: Untimed calls of each, each time it is opened.
        runs: Timed runs of each. At least six.
        clocks: The clocks to read.
        timing: Further arguments of :func:`time_interleaved`.
    Returns:
        A comparison for each pair.
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
    times = [_summarise(runs, clock) for runs in zip(*timed.runs, strict=True)]
    places = [(names.index(name), names.index(reference)) for name, reference in pairs]
    ratios = [_ratio(timed, own, other, clock) for own, other in places]
    return [
        LatencyComparison(
            reference=names[other],
            workload=workload,
            rounds=len(timed.rounds),
            runs=len(timed.runs),
            calls_per_run=timed.calls_per_run,
            reference_time=times[other],
            time=times[own],
            clock=clock,
            ratio=ratio,
            finding=finding_of(ratio),
            verdict=in_words(ratio),
        )
        for (own, other), ratio in zip(places, ratios, strict=True)
    ]


def _ratio(timed: Timed, own: int, other: int, clock: Clock) -> Interval:
    """Return the ratio of the candidate at a place to another one."""
    logarithms = [
        median(math.log(runs[own].by(clock) / runs[other].by(clock)) for runs in each)
        for each in timed.rounds
    ]
    return Interval(*map(math.exp, astuple(median_interval(logarithms))))


def _open(variant: Variant, feeds: Mapping[str, np.ndarray], threads: int) -> Call:
    """Open a file and check with a first call that it takes the inputs."""
    session = open_session(variant.path, threads=threads, library=variant.library)
    call(session, feeds)
    return partial(session.run, None, dict(feeds))


def _summarise(runs: Sequence[Run], clock: Clock) -> Timing:
    cpu = _spread([run.cpu for run in runs]) if clock == "thread CPU" else None
    return Timing(wall=_spread([run.wall for run in runs]), cpu=cpu)


def _spread(milliseconds: Sequence[float]) -> Spread:
    low, middle, high = np.percentile(milliseconds, [25, 50, 75])
    return Spread(float(middle), float(high - low))
