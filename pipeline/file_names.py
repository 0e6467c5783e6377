"""Names of the files that a run writes, which stages, report and run directory share."""

from pathlib import Path

DENSE = "dense.onnx"
SPARSE = "model.onnx"
"""The plain sparse file."""
ACCELERATED = "model.sparse.onnx"
"""The sparse file with sparse operators; it needs :data:`LIBRARY`."""
WEIGHTS = "model.safetensors"
MASKS = "masks.safetensors"
LIBRARY = Path("kernels", "libmfac_sparse.so")
