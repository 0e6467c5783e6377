"""Names of the files that a run writes, and of the variants of the model among them."""

from pathlib import Path

DENSE = "dense"
"""The model as it came, in stock ONNX Runtime: what the others are compared with."""
SPARSE = "sparse"
"""The pruned model in stock ONNX Runtime."""
SPARSE_KERNELS = "sparse+kernels"
"""The pruned model with sparse operators, which need :data:`LIBRARY`."""
INT8 = "int8"
"""The pruned model with weights and activations in 8 bits, in stock ONNX Runtime."""
INT8_KERNELS = "int8+kernels"
"""The same with sparse operators."""
DENSE_INT8 = "dense-int8"
"""The model as it came in 8 bits: what people would ship instead of a pruned one."""

ONNX_FILES = {
    DENSE: "dense.onnx",
    DENSE_INT8: "dense.int8.onnx",
    SPARSE: "model.onnx",
    SPARSE_KERNELS: "model.sparse.onnx",
    INT8: "model.int8.onnx",
    INT8_KERNELS: "model.int8.sparse.onnx",
}
"""File of each variant."""
REFERENCES = (DENSE, DENSE_INT8)
"""Variants that only serve to be compared with: no gate applies to them."""
WITH_KERNELS = {SPARSE: SPARSE_KERNELS, INT8: INT8_KERNELS}
"""The variant with sparse operators that each of these is rewritten into."""
IN_8_BITS = (DENSE_INT8, INT8, INT8_KERNELS)
"""Variants that round: they compute about what PyTorch does."""
IN_INT8 = {DENSE: DENSE_INT8, SPARSE: INT8}
"""The variant that each of these is quantised to."""
LIBRARY = Path("kernels", "libmfac_sparse.so")
WEIGHTS = "model.safetensors"
MASKS = "masks.safetensors"
RANGES = "activation_ranges.safetensors"
"""With which quantization-aware epochs have trained, and with which the model ships."""


def variant_of(file: str) -> str:
    """Name of the variant that is in a file.

    >>> variant_of("model.onnx")
    'sparse'
    """
    return next(name for name, known in ONNX_FILES.items() if known == file)
