"""Convolutions of sound, whose windows have many columns and whose images one long row."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse import Window, pack, sparse_node


def test_a_wide_window_over_a_long_row_takes_no_copy_for_each_column(any_sessions):
    """1,024 copies of the row would have more than 2 GiB, and be refused."""
    columns, length = 1024, 600_000
    random = np.random.default_rng(0)
    weight = np.zeros((8, 1, 1, columns), np.float32)
    weight[:, 0, 0, [0, 500, columns - 1]] = random.standard_normal((8, 3))
    x = random.standard_normal((1, 1, 1, length)).astype(np.float32)
    node = sparse_node("c", ir.Value(name="x"), "y", pack(weight), window=Window())
    (y,) = any_sessions.open([node]).run(None, {"x": x})
    windows = np.lib.stride_tricks.sliding_window_view(x[0, 0, 0].astype(np.float64), columns)
    expected = windows[:, [0, 500, columns - 1]] @ weight[:, 0, 0, [0, 500, columns - 1]].T
    np.testing.assert_allclose(y[0, :, 0], expected.T, rtol=1e-4, atol=1e-4)
