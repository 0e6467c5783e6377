"""Names of the files that a run writes, and of the variants of the model among them."""

from pathlib import Path

DENSE = "dense"
"""The model as it came, in stock ONNX Runtime: what the others are compared with."""
SPARSE = "sparse"
"""The pruned model in stock ONNX Runtime."""
SPARSE_KERNELS = "sparse+kernels"
"""The pruned model with sparse operators, which need :data:`LIBRARY`."""

ONNX_FILES = {
    DENSE: "dense.onnx",
    SPARSE: "model.onnx",
    SPARSE_KERNELS: "model.sparse.onnx",
}
"""File of each variant."""
LIBRARY = Path("kernels", "libmfac_sparse.so")
WEIGHTS = "model.safetensors"
MASKS = "masks.safetensors"


def variant_of(file: str) -> str:
    """Name of the variant that is in a file.

    >>> variant_of("model.onnx")
    'sparse'
    """
    return next(name for name, known in ONNX_FILES.items() if known == file)
