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
from mfac_compress.export.sparse.quads import Packed1x4, pack_1x4
from mfac_compress.export.sparse.quantised_nodes import Rounding, sparse_qconv, sparse_qlinear

__all__ = [
    "DOMAIN",
    "VERSION",
    "Packed1x4",
    "PackedWeight",
    "Rounding",
    "SparseNode",
    "kernel_library",
    "pack",
    "pack_1x4",
    "planes_shape",
    "sparse_conv",
    "sparse_linear",
    "sparse_qconv",
    "sparse_qlinear",
    "unpack",
]
