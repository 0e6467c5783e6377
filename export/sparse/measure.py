"""Time parts of a model in ONNX Runtime and with sparse operators, interleaved."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.files import temporary_file
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.timing import Call, clock_for, time_interleaved
from mfac_compress.export.workload import Workload

_WARMUP = 2
_SHORTEST_RUN_MS = 1.0  # half of that of a comparison: here many candidates are timed
_LONGEST_MS = 2000.0


class CandidateError(Exception):
    """ONNX Runtime cannot run a model that was written to be timed."""


@dataclass(frozen=True)
class WorkloadTime:
    """Milliseconds per call of a part of a model, or the whole, for one workload."""

    workload: Workload
    """What a call was."""
    dense_ms: float
    """In stock ONNX Runtime, without sparse operators."""
    sparse_ms: float
    """With sparse operators."""
    ratio: float
    """Sparse / dense, median of the rounds."""

    @classmethod
    def of_rounds(
        cls, workload: Workload, dense: Sequence[float], sparse: Sequence[float]
    ) -> "WorkloadTime":
        """Return the medians of the times of two calls, by round as in :func:`time_models`."""
        return cls(workload, median(dense), median(sparse), median_ratio(sparse, dense))


def time_models(
    models: Sequence[ir.Model], feeds: Feeds, *, threads: int, rounds: int
) -> list[list[float]]:
    """Time models on the same inputs, interleaved, each opened once.

    This finds candidates; it does not judge them.

    Args:
        models: Models with or without sparse operators. All take the same inputs.
        feeds: The inputs.
        threads: Threads of ONNX Runtime.
        rounds: How often each is timed; fewer times if that takes many seconds.
    Returns:
        For each model, milliseconds per call by round.
    Raises:
        CandidateError: If ONNX Runtime cannot load or run one of them.
    """

    def open_call(model: ir.Model) -> Call:
        return partial(open_model(model, threads).run, None, dict(feeds))

    try:
        timed = time_interleaved(
            [partial(open_call, model) for model in models],
            rounds=1,
            runs=rounds,
            warmup=_WARMUP,
            shortest_run_ms=_SHORTEST_RUN_MS,
            longest_ms=_LONGEST_MS,
        )
    except (Fail, InvalidArgument, RuntimeException, ValueError) as error:  # ValueError: to load it
        raise CandidateError(str(error)) from error
    return timed.times(clock_for(threads))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios ours / theirs."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw standard normal or random uint8 inputs for a model whose inputs have fixed shapes.

    Args:
        model: Its inputs are float32 or uint8.
        seed: Seed of the random generator.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = value.shape.numpy()
        if value.dtype == ir.DataType.UINT8:
            feeds[value.name] = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def open_model(model: ir.Model, threads: int) -> onnxruntime.InferenceSession:
    """Open a session of a model in memory, with the kernels if it has sparse operators."""
    sparse = DOMAIN in model.opset_imports
    # Once the session is open, ONNX Runtime has read the file.
    with temporary_file(model) as path:
        return open_session(path, threads=threads, library=kernel_library() if sparse else None)
