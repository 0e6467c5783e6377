"""Functions of PyTorch for ONNX's operators. Importing this package registers them."""

from mfac_compress.export.from_onnx.operators import (  # noqa: F401
    elementwise,
    indexing,
    products,
    reductions,
    shapes,
    windows,
)
