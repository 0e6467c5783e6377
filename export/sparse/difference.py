"""Whether a model with sparse operators computes what the model without them does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from mfac_compress.export.graphs import nested
from mfac_compress.export.session import load
from mfac_compress.export.sparse.files import written
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.measure import open_model
from mfac_compress.export.sparse.probe import Feeds, unoptimised

MOST_DIFFERENCE = 1e-3
"""Share of the largest output that rounding explains; deep models come to 1e-5."""
MOST_QUANTISED_DIFFERENCE = 0.05
"""The same where values are rounded to 8 bits: floats that differ in their last bit may differ by a
step there, which is 0.4% of a range, and by more behind it. ONNX Runtime with its optimisations and
without has been seen to differ by 1.8%; quantised layers as sparse operators left all models that
were tried equal to the bit."""
_ROUNDS_VALUES = ("QuantizeLinear", "DynamicQuantizeLinear")


def most_difference(graph: Graph) -> float:
    """The share of the largest output that rounding explains in a model.

    It follows from the model alone: what rounds its values also rounds what is not replaced.
    """
    nodes = (node for each in nested(graph.model.graph) for node in each.node)
    quantised = any(node.op_type in _ROUNDS_VALUES for node in nodes)
    return MOST_QUANTISED_DIFFERENCE if quantised else MOST_DIFFERENCE


def largest_difference(
    dense: onnx.ModelProto, sparse: onnx.ModelProto, feeds: Feeds
) -> float | None:
    """Compare the outputs of two models that are floats, quantised or not.

    The dense one is run with ONNX Runtime's optimisations and without, and the smaller difference
    counts: optimised, ONNX Runtime rounds the inputs of weights that are stored in 8 bits to 8
    bits, which the file does not say, and which has been seen to change outputs by 1%.

    Args:
        dense: Without sparse operators.
        sparse: With them.
        feeds: The inputs of both.
    Returns:
        The largest difference as a share of the largest absolute value of its output. Infinity
        where one output is NaN or infinite and the other is not. None where nothing is compared.
    """
    found = open_model(sparse, 1).run(None, dict(feeds))
    optimised = _largest(open_model(dense, 1).run(None, dict(feeds)), found)
    if not optimised:
        return optimised
    with written(dense) as path:
        session = load(str(path), unoptimised())
    return min(optimised, _largest(session.run(None, dict(feeds)), found))


def _largest(expected: Sequence[Any], found: Sequence[Any]) -> float | None:
    pairs = zip(expected, found, strict=True)
    return max((_difference(a, b) for a, b in pairs if _is_numeric(a)), default=None)


def _is_numeric(output: object) -> bool:
    """Floats, and integers so short that they are quantised floats; longer ones may be places."""
    if not isinstance(output, np.ndarray) or output.size == 0:
        return False
    kind, size = output.dtype.kind, output.dtype.itemsize
    return kind == "f" or (kind in "iu" and size <= 2)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    expected, found = (part[finite].astype(np.float64) for part in (expected, found))
    largest = np.abs(expected).max(initial=0.0)
    return float(
        np.abs(found - expected).max(initial=0.0) / max(largest, np.finfo(np.float32).tiny)
    )
