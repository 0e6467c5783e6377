"""Time parts of a model, computed by ONNX Runtime and by the sparse operators, in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import onnx
import onnxruntime

from mfac_compress.export.latency import Setting
from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.files import written
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.timing import Call, clock_for, time_interleaved

_WARMUP = 2
_SHORTEST_RUN_MS = 1.0  # half of what a comparison takes: here many candidates are looked through
_LONGEST_MS = 2000.0


@dataclass(frozen=True)
class SettingTime:
    """What a part of a model, or the whole, takes at one setting, in milliseconds a call."""

    setting: Setting
    dense_ms: float
    """As it is, in stock ONNX Runtime."""
    sparse_ms: float
    """With sparse operators."""
    ratio: float
    """Sparse / dense, median of the rounds."""

    @classmethod
    def of_rounds(
        cls, setting: Setting, dense: Sequence[float], sparse: Sequence[float]
    ) -> "SettingTime":
        """The medians of the times of two calls, by round as :func:`race` gives them."""
        return cls(setting, median(dense), median(sparse), median_ratio(sparse, dense))


def race(
    models: Sequence[onnx.ModelProto], feeds: Feeds, *, threads: int, rounds: int
) -> list[list[float]]:
    """Time models on the same inputs, each opened once: to find candidates, not to judge them.

    Args:
        models: With or without sparse operators. All take the same inputs.
        feeds: The inputs.
        threads: Of ONNX Runtime.
        rounds: How often each is timed, in turn; fewer times where that takes many seconds.
    Returns:
        For each model, milliseconds a call by round.
    """

    def open_call(model: onnx.ModelProto) -> Call:
        return partial(open_model(model, threads).run, None, dict(feeds))

    timed = time_interleaved(
        [partial(open_call, model) for model in models],
        rounds=1,
        runs=rounds,
        warmup=_WARMUP,
        shortest_run_ms=_SHORTEST_RUN_MS,
        longest_ms=_LONGEST_MS,
    )
    return timed.times(clock_for(threads))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' ratios ours / theirs."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal inputs, or any bytes, for a model whose inputs have fixed shapes.

    Args:
        model: Its inputs are float32 or uint8.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dimension.dim_value for dimension in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.UINT8:
            feeds[value.name] = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def open_model(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """A session of a model in memory, with the kernels where it has sparse operators."""
    sparse = any(imported.domain == DOMAIN for imported in model.opset_import)
    # ONNX Runtime has read the file once the session is there.
    with written(model) as path:
        return open_session(path, threads=threads, library=kernel_library() if sparse else None)
