"""ONNX files as modules of PyTorch, whose weights are written back into the files.

An interpreter of its own: see docs/decisions/0031-onnx-files-as-models.md. It keeps shapes as
numbers, so that PyTorch can trace the module for any batch; its layers are PyTorch's own.
"""

from mfac_compress.export.from_onnx.compare import check_outputs
from mfac_compress.export.from_onnx.convert import Converted, Stored, convert
from mfac_compress.export.from_onnx.module import OnnxModule
from mfac_compress.export.from_onnx.names import named_as_module
from mfac_compress.export.from_onnx.source import Source

__all__ = [
    "Converted",
    "OnnxModule",
    "Source",
    "Stored",
    "check_outputs",
    "convert",
    "named_as_module",
]
