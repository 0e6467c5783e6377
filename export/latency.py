"""Compare the latency of two ONNX files in ONNX Runtime."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import onnxruntime

from mfac_compress.export.intervals import Interval, median_interval
from mfac_compress.export.session import fixed_batch, open_session, run

_SHORTEST_RUN_MS = 2.0  # long against the clocks' resolution and the cost of reading them
_TRIALS = 3
# One session of a file can be 2% faster than the next, by where its memory came to lie, and the
# one opened second has the better of it: so much that a file "beat" itself in a third of the
# measurements. Sessions opened anew in each round, in changing order, put that into the spread.
_ROUNDS = 10

_Path = str | os.PathLike[str]
_T = TypeVar("_T")


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
    """Latency of a sparse file against a dense one, at one batch size and thread count."""

    batch_size: int
    threads: int
    runs: int
    """Pairs of timed runs."""
    calls_per_run: int
    """Calls timed as one, so that a run is long against the clock's resolution."""
    dense: Timing
    sparse: Timing
    clock: Literal["thread CPU", "wall"]
    """The clock of ``ratio``."""
    ratio: Interval
    """Sparse / dense: median of the paired ratios and its 95% interval."""

    @property
    def verdict(self) -> str:
        """The comparison in words; no speed-up is claimed where the interval includes 1.00."""
        # Both ends as they are printed: a verdict must not contradict its own figures.
        low, high = round(1 / self.ratio.high, 2), round(1 / self.ratio.low, 2)
        if low <= 1 <= high:
            return "no speed-up"
        if low > 1:
            return f"{1 / self.ratio.median:.2f}x faster (95% interval {low:.2f} to {high:.2f})"
        return (
            f"{self.ratio.median:.2f}x slower "
            f"(95% interval {self.ratio.low:.2f} to {self.ratio.high:.2f})"
        )


class _File(NamedTuple):
    path: _Path
    library: Path | None = None


class _Run(NamedTuple):
    """One timed run, in milliseconds per call."""

    wall: float
    cpu: float


def compare_latency(
    dense_path: _Path,
    sparse_path: _Path,
    inputs: np.ndarray,
    *,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    warmup: int,
    runs: int,
    seed: int = 0,
    library: Path | None = None,
) -> list[LatencyComparison]:
    """Time two files against each other, in turn, so that both meet the same load.

    The order changes from pair to pair (dense sparse, sparse dense, ...), and both files are
    opened anew up to ten times: an interval from one pair of sessions misses how much sessions of
    the same file differ. At one thread ONNX Runtime computes in the calling thread, whose CPU
    time other programs do not lengthen; the ratio is taken on that. At more threads it is taken
    on wall time.

    Args:
        dense_path: The ONNX file to compare with.
        sparse_path: The ONNX file that is to be judged.
        inputs: Samples to draw batches from. Shape ``[n, ...]``.
        batch_sizes: Rows per call.
        threads: Threads of ONNX Runtime.
        warmup: Untimed calls of each file, each time it is opened.
        runs: Timed pairs. At least six.
        seed: Of the draw of each batch.
        library: Shared library of custom operators that the sparse file needs. The dense one is
            always opened without.
    Returns:
        One comparison per thread count and batch size, in that order.
    Raises:
        ValueError: If ``runs`` is too small, a file cannot be loaded or does not take the inputs,
            or was exported for another batch size.
    """
    files = (_File(dense_path), _File(sparse_path, library))
    comparisons = []
    for count in threads:
        for size in batch_sizes:
            rows = np.random.default_rng(seed).integers(len(inputs), size=size)
            calls, pairs = _measure(files, count, inputs[rows], warmup, runs)
            comparisons.append(_compare(size, count, calls, pairs))
    return comparisons


def _measure(
    files: tuple[_File, _File], threads: int, batch: np.ndarray, warmup: int, runs: int
) -> tuple[int, list[tuple[_Run, _Run]]]:
    """Time (dense, sparse) pairs on one batch, in rounds. Returns calls per run, and the pairs."""
    calls, pairs = 0, []
    for number, share in enumerate(np.array_split(range(runs), min(runs, _ROUNDS))):
        sessions = _both(partial(_open, threads=threads), *files, swapped=number % 2)
        _check_batch_size(sessions, len(batch))
        for _ in range(warmup):
            _both(partial(run, batch=batch), *sessions)
        calls = calls or _calls_per_run(sessions, batch)
        timed = partial(_time, batch=batch, calls=calls)
        pairs += [_both(timed, *sessions, swapped=index % 2) for index in share]
    return calls, pairs


def _open(file: _File, threads: int) -> onnxruntime.InferenceSession:
    return open_session(file.path, threads=threads, library=file.library)


def _both(act: Callable[[Any], _T], dense: Any, sparse: Any, swapped: int = 0) -> tuple[_T, _T]:
    """Act on both, the dense one first unless swapped. Returns the results as (dense, sparse)."""
    if swapped:
        result = act(sparse)
        return act(dense), result
    return act(dense), act(sparse)


def _check_batch_size(sessions: Sequence[onnxruntime.InferenceSession], size: int) -> None:
    for session in sessions:
        fixed = fixed_batch(session)
        if fixed not in (None, size):
            raise ValueError(
                f"validate.latency.batch_sizes must be [{fixed}], the batch size that the ONNX "
                f"file was exported for. Got {size}. Or set export.dynamic_batch: true."
            )


def _calls_per_run(sessions: Sequence[onnxruntime.InferenceSession], batch: np.ndarray) -> int:
    """Count the calls of the faster session that make a run long enough to time."""
    trials = [_time(session, batch, calls=1).wall for session in sessions for _ in range(_TRIALS)]
    return max(1, math.ceil(_SHORTEST_RUN_MS / min(trials)))


def _time(session: onnxruntime.InferenceSession, batch: np.ndarray, calls: int) -> _Run:
    """Time some calls as one."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    for _ in range(calls):
        run(session, batch)
    wall, cpu = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
    return _Run(wall / calls / 1e6, cpu / calls / 1e6)


def _compare(
    batch_size: int, threads: int, calls: int, pairs: Sequence[tuple[_Run, _Run]]
) -> LatencyComparison:
    """Sum up the pairs of runs of one batch size and thread count."""
    dense, sparse = zip(*pairs, strict=True)
    clock = "thread CPU" if threads == 1 else "wall"
    field = "cpu" if threads == 1 else "wall"
    ratios = [getattr(after, field) / getattr(before, field) for before, after in pairs]
    return LatencyComparison(
        batch_size=batch_size,
        threads=threads,
        runs=len(pairs),
        calls_per_run=calls,
        dense=_summarise(dense, threads),
        sparse=_summarise(sparse, threads),
        clock=clock,
        ratio=median_interval(ratios),
    )


def _summarise(runs: Sequence[_Run], threads: int) -> Timing:
    cpu = _spread([run.cpu for run in runs]) if threads == 1 else None
    return Timing(wall=_spread([run.wall for run in runs]), cpu=cpu)


def _spread(milliseconds: Sequence[float]) -> Spread:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return Spread(float(median), float(high - low))
