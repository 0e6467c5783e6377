"""Write a model with weights and activations in 8 bits, by ONNX Runtime's own quantiser.

Activations are uint8, weights int8 and symmetric: what ONNX Runtime computes fastest on x86, and
with zero points of 0 every zero of a weight stays one. The form is QDQ: float operators between
QuantizeLinear and DequantizeLinear. Where a layer is left in float, so is its weight.
"""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from mfac_compress.export.names import Feeds
from mfac_compress.export.onnx_file import write_graph
from mfac_compress.export.passes import TRANSPOSED
from mfac_compress.export.quantised_weights import SUFFIX, quantised_weights, replace_steps
from mfac_compress.export.silence import silence

Ranges = Literal["minmax", "entropy", "percentile"]
Steps = Mapping[str, np.ndarray]
_NEAREST: Steps = MappingProxyType({})

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Their second input is the weight."""
_BETWEEN = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad",
    "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that ONNX Runtime also computes in 8 bits, and between layers had better: each way
into float and back costs more than they do. Norms, Softmax and Gelu lose more than they gain."""
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


def _layers_of(model: onnx.ModelProto) -> Iterator[QuantisableLayer]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _LAYERS and node.input[1] in constants:
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


class StaticQuantiser:
    """A float file and the ranges of its activations; writes it with any of its layers in 8 bits.

    Args:
        path: The float file.
        batches: Inputs by name, on which the ranges are measured.
        ranges: What an activation's range is.
        per_channel: Give each output of a layer a scale of its own.
        reduce_range: Use 7 of the weights' 8 bits.
        scratch: Folder for temporary files, of which none stays.
    Raises:
        ValueError: If there is no batch, or ONNX Runtime cannot run the file on one.
    """

    def __init__(
        self,
        path: Path,
        batches: Iterable[Feeds],
        *,
        ranges: Ranges = "minmax",
        per_channel: bool = True,
        reduce_range: bool = False,
        scratch: Path,
    ) -> None:
        self._per_channel, self._reduce_range, self._scratch = per_channel, reduce_range, scratch
        with _workplace(scratch) as folder:
            # Shapes are inferred by way of a file beside the model: not in the model's own folder.
            copied = folder / "model.onnx"
            onnx.save(onnx.load(path), copied, save_as_external_data=_is_large(path))
            self.model = _with_shapes(copied)
            """The float model. Not to be changed."""
            self._ranges = _measure(copied, folder, batches, ranges)
        nodes = self.model.graph.node
        self.layers = tuple(_layers_of(self.model))
        """Layers that can be in 8 bits."""
        own = {layer.node for layer in self.layers}
        self._never = [
            node.name for node in nodes if node.op_type in _LAYERS and node.name not in own
        ]
        self._biases = _biases(self.model)

    def write(
        self,
        output: Path,
        *,
        in_float: Collection[str] = (),
        steps: Steps = _NEAREST,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the model in 8 bits.

        Args:
            output: File to write.
            in_float: Nodes of layers that stay in float.
            steps: Weights in 8 bits, int8 by their names in the float file, in the places of those
                that ONNX Runtime rounds to nearest, on its scales.
            metadata: Added to the file's.
        Raises:
            ValueError: If ONNX Runtime's quantiser cannot write it.
        """
        biases = [self._biases[node] for node in in_float if node in self._biases]
        self._write(output, steps, metadata, exclude=[*self._never, *in_float, *biases])

    def write_only(self, output: Path, node: str, *, steps: Steps = _NEAREST) -> None:
        """Write the model in float but for one layer."""
        biases = [self._biases[node]] if node in self._biases else []
        self._write(output, steps, None, only=[node, *biases])

    def _write(
        self,
        output: Path,
        steps: Steps,
        metadata: Mapping[str, str] | None,
        *,
        exclude: Collection[str] = (),
        only: Collection[str] = (),
    ) -> None:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        with _workplace(self._scratch), _as_value_error("quantise"):
            quantiser = QDQQuantizer(
                deepcopy(self.model),
                self._per_channel,
                self._reduce_range,
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [*only],
                [*exclude],
                [*_LAYERS, *_BETWEEN],
                {"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            quantiser.quantize_model()
            model = ir.from_proto(quantiser.model.model)
        model.graph.sort()  # the quantiser puts its nodes behind all others
        replace_steps(model, steps)
        write_graph(model, output, metadata=metadata)


def _biases(model: onnx.ModelProto) -> dict[str, str]:
    """The Add behind a layer that adds its bias, by the layer: both are in 8 bits, or neither."""
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = {node.output[0]: node.name for node in model.graph.node if node.op_type in _LAYERS}
    return {
        layers[name]: node.name
        for node in model.graph.node
        if node.op_type == "Add" and constants & {*node.input}
        for name in node.input
        if name in layers
    }


class DynamicQuantiser:
    """A float file; writes it with any of its matrix products in 8 bits.

    The ranges of their inputs are found anew in each call, so no samples are needed.

    Args:
        path: The float file.
        per_channel: Give each output of a layer a scale of its own.
        reduce_range: Use 7 of the weights' 8 bits.
        scratch: Folder for temporary files, of which none stays.
    """

    def __init__(
        self, path: Path, *, per_channel: bool = True, reduce_range: bool = False, scratch: Path
    ) -> None:
        self._per_channel, self._reduce_range = per_channel, reduce_range
        self._scratch, self._large = scratch, _is_large(path)
        with _workplace(scratch) as folder:
            model = onnx.load(path)
            _gemms_to_matmuls(model)
            copied = folder / "model.onnx"
            onnx.save(model, copied, save_as_external_data=self._large)
            self.model = _with_shapes(copied)
            """The float model, each Gemm as MatMul and Add. Not to be changed."""
        found = _layers_of(self.model)
        self.layers = tuple(layer for layer in found if layer.operator == "MatMul")
        """Layers that can be in 8 bits."""

    def write(
        self,
        output: Path,
        *,
        in_float: Collection[str] = (),
        steps: Steps = _NEAREST,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the model in 8 bits, as :meth:`StaticQuantiser.write` does."""
        self._write(output, steps, metadata, in_float)

    def write_only(self, output: Path, node: str, *, steps: Steps = _NEAREST) -> None:
        """Write the model in float but for one layer."""
        self._write(output, steps, None, [one.node for one in self.layers if one.node != node])

    def _write(
        self,
        output: Path,
        steps: Steps,
        metadata: Mapping[str, str] | None,
        exclude: Collection[str],
    ) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _workplace(self._scratch) as folder, _as_value_error("quantise"):
            written = folder / "int8.onnx"
            quantize_dynamic(
                deepcopy(self.model),
                written,
                op_types_to_quantize=["MatMul"],
                per_channel=self._per_channel,
                reduce_range=self._reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*exclude],
                use_external_data_format=self._large,
                extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
            )
            model = ir.load(written)
            model.graph.sort()
            replace_steps(model, steps)
            write_graph(model, output, metadata=metadata)


def _gemms_to_matmuls(model: onnx.ModelProto) -> None:
    """Write each Gemm as MatMul and Add, which is what can be quantised dynamically.

    The quantiser would do it, but keep the name of a weight that it transposes, and forget that
    another node may read it.
    """
    graph = model.graph
    constants, nodes = {tensor.name: tensor for tensor in graph.initializer}, []
    for node in graph.node:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        plain = given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in constants or not plain:
            nodes.append(node)
            continue
        weight = node.input[1]
        if given.get("transB", 0):
            turned = weight + TRANSPOSED
            if turned not in constants:
                array = onnx.numpy_helper.to_array(constants[weight]).T
                constants[turned] = onnx.numpy_helper.from_array(array, turned)
                graph.initializer.append(constants[turned])
            weight = turned
        biased = len(node.input) > 2
        product = f"{node.output[0]}_product" if biased else node.output[0]
        names = {"name": node.name}
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], **names))
        if biased:
            names = {"name": f"{node.name}_bias"}
            added = [product, node.input[2]]
            nodes.append(onnx.helper.make_node("Add", added, node.output, **names))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    used |= {output.name for output in graph.output}
    for tensor in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(tensor)


def _measure(path: Path, folder: Path, batches: Iterable[Feeds], ranges: Ranges) -> Any:
    """Return the ranges of all activations."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[ranges]
    with _as_value_error("measure the ranges of"):
        calibrator = create_calibrator(
            path,
            [*_LAYERS, *_BETWEEN],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=method,
            use_external_data_format=_is_large(path),
            # The default of percentile is symmetric, which wastes half of uint8 behind a Relu.
            extra_options={"symmetric": False},
        )
        for batch in batches:
            # One at a time: what is collected in one call stays in memory until its end.
            calibrator.collect_data(_Batches([batch]))
        found = calibrator.compute_data()
        if not found:
            raise ValueError("no samples were given")
        return found


class _Batches:
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else dict(batch)


def _with_shapes(path: Path) -> onnx.ModelProto:
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    with _as_value_error("infer the shapes of"):
        return load_model_with_shape_infer(path)


def _is_large(path: Path) -> bool:
    """Whether a file keeps its tensors beside it, as one that exceeds protobuf's 2 GiB must."""
    return path.with_name(f"{path.name}.data").exists()


@contextmanager
def _workplace(scratch: Path) -> Iterator[Path]:
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
def _as_value_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the quantiser raises whatever it meets
        raise ValueError(
            f"ONNX Runtime's quantiser must be able to {what} the model. It raised "
            f"{type(error).__name__}: {error}. Set quantize.mode to off, or another one."
        ) from error
