"""Sparse operators for ONNX Runtime: packed weights, graph nodes and the library that runs them."""

from mfac_compress.export.sparse.format import PackedWeight, pack, unpack
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.nodes import (
    DOMAIN,
    VERSION,
    SparseNode,
    planes_shape,
    sparse_conv,
    sparse_linear,
)

__all__ = [
    "DOMAIN",
    "VERSION",
    "PackedWeight",
    "SparseNode",
    "kernel_library",
    "pack",
    "planes_shape",
    "sparse_conv",
    "sparse_linear",
    "unpack",
]
