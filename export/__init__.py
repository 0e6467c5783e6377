"""ONNX files: writing, running, measuring and auditing them."""

import mfac_compress.export.environment  # noqa: F401  (before onnxruntime is imported)
from mfac_compress.export.audit import TensorAudit, audit_zeros, removed_zeros
from mfac_compress.export.dead_channels import (
    Coupling,
    Kept,
    find_coupling,
    remove_dead_channels,
    shrink_file,
)
from mfac_compress.export.external_data import data_files, data_path
from mfac_compress.export.intervals import Interval, median_interval
from mfac_compress.export.latency import (
    LatencyComparison,
    Spread,
    Timing,
    compare_latency,
    finding_of,
    in_words,
    why_not_faster,
)
from mfac_compress.export.machine import Machine, machine_load
from mfac_compress.export.onnx_file import build_graph, export_onnx, write_graph
from mfac_compress.export.parity import largest_difference, model_outputs, parity_error
from mfac_compress.export.session import open_session, predict
from mfac_compress.export.size import FileSize, compare_size
from mfac_compress.export.sparse.confirm import WHOLE_NOT_FASTER, confirm
from mfac_compress.export.sparse.files import write_model
from mfac_compress.export.sparse.inputs import RandomInputs, ShapeError
from mfac_compress.export.sparse.layer_speed import LayerSpeed
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.measure import WorkloadTime
from mfac_compress.export.sparse.sessions import sparse_session
from mfac_compress.export.sparse.speed import FileSpeed, measure_speed
from mfac_compress.export.sparse.trial import try_file
from mfac_compress.export.survival import lost_in_file, lost_zeros
from mfac_compress.export.variant import Variant
from mfac_compress.export.workload import Workload

__all__ = [
    "WHOLE_NOT_FASTER",
    "Coupling",
    "FileSize",
    "FileSpeed",
    "Interval",
    "Kept",
    "LatencyComparison",
    "LayerSpeed",
    "Machine",
    "RandomInputs",
    "ShapeError",
    "Spread",
    "TensorAudit",
    "Timing",
    "Variant",
    "Workload",
    "WorkloadTime",
    "audit_zeros",
    "build_graph",
    "compare_latency",
    "compare_size",
    "confirm",
    "data_files",
    "data_path",
    "export_onnx",
    "find_coupling",
    "finding_of",
    "in_words",
    "kernel_library",
    "largest_difference",
    "lost_in_file",
    "lost_zeros",
    "machine_load",
    "measure_speed",
    "median_interval",
    "model_outputs",
    "open_session",
    "parity_error",
    "predict",
    "remove_dead_channels",
    "removed_zeros",
    "shrink_file",
    "sparse_session",
    "try_file",
    "why_not_faster",
    "write_graph",
    "write_model",
]
