"""ONNX files: writing, running, measuring and auditing them."""

from mfac_compress.export.audit import TensorAudit, audit_zeros
from mfac_compress.export.intervals import Interval, median_interval
from mfac_compress.export.latency import LatencyComparison, Spread, Timing, compare_latency
from mfac_compress.export.machine import machine_load
from mfac_compress.export.onnx_file import export_onnx
from mfac_compress.export.parity import parity_error
from mfac_compress.export.session import open_session, predict
from mfac_compress.export.size import FileSize, file_size
from mfac_compress.export.sparse import kernel_library

__all__ = [
    "FileSize",
    "Interval",
    "LatencyComparison",
    "Spread",
    "TensorAudit",
    "Timing",
    "audit_zeros",
    "compare_latency",
    "export_onnx",
    "file_size",
    "kernel_library",
    "machine_load",
    "median_interval",
    "open_session",
    "parity_error",
    "predict",
]
