"""Whether a model with sparse operators computes what the file without them does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mfac_compress.export.session import load, open_session
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.measure import open_model
from mfac_compress.export.sparse.probe import Feeds, unoptimised

MAX_DIFFERENCE = 1e-3
"""Difference, relative to the largest output, that rounding can explain; deep models reach 1e-5."""
MAX_QUANTISED_DIFFERENCE = 0.05
"""The same if values are rounded to 8 bits: floats that differ in their last bit may then differ by
one step, which is 0.4% of the range, and by more in later layers. ONNX Runtime's results with and
without optimisations have been seen to differ by 1.8%, and transformers of random weights by as
much with the library's layer norms. With only quantised layers as sparse operators, the outputs of
all models that were tried were bit-identical."""
_ROUNDS_VALUES = ("QuantizeLinear", "DynamicQuantizeLinear")


def max_difference(graph: Graph) -> float:
    """Return the difference, relative to the largest output, that rounding can explain in a model.

    It depends on the model only: its quantisation also rounds the values that are not replaced.
    """
    nodes = graph.model.graph.all_nodes()
    quantised = any(node.op_type in _ROUNDS_VALUES for node in nodes)
    return MAX_QUANTISED_DIFFERENCE if quantised else MAX_DIFFERENCE


def largest_difference(path: Path, sparse: ir.Model, feeds: Feeds) -> float | None:
    """Compare those outputs of a file and a model that are floats, quantised or not.

    The file itself is run, not the model as it was read: so a difference in reading is seen, too.
    It is run with and without ONNX Runtime's optimisations, and the smaller difference counts: with
    them, ONNX Runtime also rounds the inputs of layers whose weights are stored in 8 bits, although
    the file does not say so, which has been seen to change outputs by 1%.

    Args:
        path: ONNX file without sparse operators.
        sparse: The model with them.
        feeds: The inputs of both.
    Returns:
        The largest difference as a share of the largest absolute value of its output. Infinity
        where one output is NaN or infinite and the other is not. None where nothing is compared.
    """
    found = open_model(sparse, 1).run(None, dict(feeds))
    optimised = _largest(open_session(path).run(None, dict(feeds)), found)
    if not optimised:
        return optimised
    session = load(str(path), unoptimised())
    return min(optimised, _largest(session.run(None, dict(feeds)), found))


def _largest(expected: Sequence[Any], found: Sequence[Any]) -> float | None:
    pairs = zip(expected, found, strict=True)
    return max((_difference(a, b) for a, b in pairs if _is_numeric(a)), default=None)


def _is_numeric(output: object) -> bool:
    """Whether an output is float or a quantised float; longer integers may be indices."""
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
