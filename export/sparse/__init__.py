"""Sparse operators for ONNX Runtime: packed weights, graph nodes and the library that runs them."""

from mfac_compress.export.sparse.format import Block, Packed, pack, pack_1x4
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.nodes import (
    DOMAIN,
    VERSION,
    Activation,
    Addition,
    Depthwise,
    MaxPool,
    Rounding,
    Scaling,
    Window,
    planes_shape,
    sparse_node,
)

__all__ = [
    "DOMAIN",
    "VERSION",
    "Activation",
    "Addition",
    "Block",
    "Depthwise",
    "MaxPool",
    "Packed",
    "Rounding",
    "Scaling",
    "Window",
    "kernel_library",
    "pack",
    "pack_1x4",
    "planes_shape",
    "sparse_node",
]
