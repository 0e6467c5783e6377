"""Whether a model with sparse operators computes what the model without them does."""

import numpy as np
import onnx

from mfac_compress.export.sparse.measure import open_model
from mfac_compress.export.sparse.probe import Feeds

MOST_DIFFERENCE = 1e-3
"""Share of the largest output that rounding explains; deep models come to 1e-5."""
MOST_QUANTISED_DIFFERENCE = 0.05
"""The same where values are rounded to 8 bits: floats that differ in their last bit may differ by a
step there, which is 0.4% of a range. A BERT block comes to 0.8%."""


def largest_difference(dense: onnx.ModelProto, sparse: onnx.ModelProto, feeds: Feeds) -> float:
    """Compare the floating outputs of two models.

    Args:
        dense: Without sparse operators.
        sparse: With them.
        feeds: The inputs of both.
    Returns:
        The largest difference as a share of the largest absolute value of its output. Infinity
        where one output is NaN or infinite and the other is not.
    """
    pairs = zip(*(open_model(m, 1).run(None, dict(feeds)) for m in (dense, sparse)), strict=True)
    return max((_difference(a, b) for a, b in pairs if _is_floating(a)), default=0.0)


def _is_floating(output: object) -> bool:
    return isinstance(output, np.ndarray) and output.dtype.kind == "f" and output.size > 0


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    expected, found = (part[finite].astype(np.float64) for part in (expected, found))
    largest = np.abs(expected).max(initial=0.0)
    return float(
        np.abs(found - expected).max(initial=0.0) / max(largest, np.finfo(np.float32).tiny)
    )
