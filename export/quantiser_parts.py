"""What quantising needs of ONNX Runtime's quantiser, whichever of its two ways is taken."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from mfac_compress.export.quantised_weights import SUFFIX, quantised_weights
from mfac_compress.export.silence import silence

Steps = Mapping[str, np.ndarray]
"""Weights in 8 bits, int8, by their names in the float file."""
NEAREST: Steps = MappingProxyType({})
"""No weights: those that ONNX Runtime rounds stay as they are."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Their second input is the weight."""
_ERRORS, _WARNINGS = 3, 2  # severities of ONNX Runtime's log


@dataclass(frozen=True)
class QuantisableLayer:
    """A layer with a constant weight."""

    node: str
    """Name of its node in the graph."""
    operator: str
    """ONNX operator."""
    weight: str
    """Name of its weight in the float file."""
    size: int
    """Number of its weights."""


def layers_of(model: onnx.ModelProto) -> Iterator[QuantisableLayer]:
    """Yield the layers with a constant weight, in the graph's order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in constants:
            tensor = constants[node.input[1]]
            yield QuantisableLayer(node.name, node.op_type, tensor.name, prod(tensor.dims))


def weights_in_8_bits(path: Path) -> set[str]:
    """Names, in the float file, of the weights that a file of this module holds in 8 bits."""
    model = ir.load(path)
    return {
        name
        for name, _ in quantised_weights(model)
        if model.graph.initializers[name + SUFFIX].dtype == ir.DataType.INT8  # biases: UINT8
    }


def load_with_shapes(path: Path) -> onnx.ModelProto:
    """Load a file for the quantiser, which needs the shapes of all values and a name for each node.

    Raises:
        ValueError: If they cannot be inferred.
    """
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    with as_value_error("infer the shapes of"):
        model = load_model_with_shape_infer(path)
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            free = (f"{node.op_type}_{number}{'_' * more}" for more in count())
            node.name = next(name for name in free if name not in taken)
            taken.add(node.name)
    return model


def is_large(path: Path) -> bool:
    """Whether a file keeps its tensors beside it, as one that exceeds protobuf's 2 GiB must."""
    return path.with_name(f"{path.name}.data").exists()


@contextmanager
def workplace(scratch: Path) -> Iterator[Path]:
    """A folder for the quantiser's temporary files, and silence."""
    before, onnxruntime_said = tempfile.tempdir, _WARNINGS
    with tempfile.TemporaryDirectory(prefix=".quantise-", dir=scratch) as folder, silence():
        onnxruntime.set_default_logger_severity(_ERRORS)
        tempfile.tempdir = folder  # the quantiser's own files go to the system's folder otherwise
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
            onnxruntime.set_default_logger_severity(onnxruntime_said)


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Turn any error of the quantiser into one; ``what`` is what it must be able to do."""
    try:
        yield
    except Exception as error:  # the quantiser raises whatever it meets
        raise ValueError(
            f"ONNX Runtime's quantiser must be able to {what} the model. It raised "
            f"{type(error).__name__}: {error}. Set quantize.mode to off, or another one."
        ) from error
