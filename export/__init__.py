"""ONNX files: writing, running, measuring and auditing them."""

from .audit import TensorAudit, audit_zeros
from .intervals import Interval, median_interval
from .latency import LatencyComparison, Spread, Timing, compare_latency
from .machine import machine_load
from .onnx_file import export_onnx
from .parity import parity_error
from .session import open_session, predict
from .size import FileSize, file_size

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
    "machine_load",
    "median_interval",
    "open_session",
    "parity_error",
    "predict",
]
