"""Write a model with weights and activations in 8 bits, by ONNX Runtime's own quantiser.

Activations are uint8, weights int8 and symmetric: what ONNX Runtime computes fastest on x86, and
with zero points of 0 every zero of a weight stays one. The form is QDQ: float operators between
QuantizeLinear and DequantizeLinear. Where a layer is left in float, so is its weight.

A matrix product (MatMul) takes bytes and makes floats: its sums are scaled, not rounded to bytes,
and what transformers compute between such products (biases, residual sums, norms, Softmax, Gelu)
stays in float. The outputs of convolutions and Gemms are bytes, and so are those of the operators
between them.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from mfac_compress.export.layer_scales import LayerScale, layer_scales
from mfac_compress.export.names import Feeds
from mfac_compress.export.onnx_file import write_graph
from mfac_compress.export.quantised_weights import replace_steps
from mfac_compress.export.quantiser_parts import (
    LAYERS,
    NEAREST,
    Steps,
    as_value_error,
    is_large,
    layers_of,
    load_with_shapes,
    workplace,
)

Ranges = Literal["minmax", "entropy", "percentile"]
ActivationRanges = Mapping[str, np.ndarray]
"""Lowest and highest value of activations, by their names in the float file. Float32 ``[2]``."""

_BETWEEN = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad",
    "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that ONNX Runtime also computes in 8 bits, and had better where layers make bytes: each
way into float and back costs more than they do."""
_MAKE_FLOATS = ("MatMul",)
"""Layers whose outputs are not quantised."""


class StaticQuantiser:
    """A float file and the ranges of its activations; writes it with any of its layers in 8 bits.

    Args:
        path: The float file.
        batches: Inputs by name, on which the ranges are measured.
        ranges: What an activation's range is.
        measured: The ranges where they are known already; no batch is then read.
        per_channel: Give each output of a layer a scale of its own.
        reduce_range: Use 7 of the weights' 8 bits.
        scratch: Folder for temporary files, of which none stays.
    Raises:
        ValueError: If there is no batch, or ONNX Runtime cannot run the file on one; if the known
            ranges are not those of this file.
    """

    def __init__(
        self,
        path: Path,
        batches: Iterable[Feeds] | None,
        *,
        ranges: Ranges = "minmax",
        measured: ActivationRanges | None = None,
        per_channel: bool = True,
        reduce_range: bool = False,
        scratch: Path,
    ) -> None:
        self._per_channel, self._reduce_range, self._scratch = per_channel, reduce_range, scratch
        with workplace(scratch) as folder:
            # Shapes are inferred by way of a file beside the model: not in the model's own folder.
            copied = folder / "model.onnx"
            onnx.save(onnx.load(path), copied, save_as_external_data=is_large(path))
            self.model = load_with_shapes(copied)
            """The float model. Not to be changed."""
            if measured is None:
                self._ranges = _measure(copied, folder, batches, ranges)
            else:
                self._ranges = _as_measured(measured)
        self.ranges: ActivationRanges = {
            name: np.array([one.lowest, one.highest], np.float32).reshape(2)
            for name, one in self._ranges.items()
        }
        """Of all activations."""
        nodes = self.model.graph.node
        self.layers = tuple(layers_of(self.model))
        """Layers that can be in 8 bits."""
        if measured is not None:
            self._check_ranges()
        own = {layer.node for layer in self.layers}
        self._never = [
            node.name for node in nodes if node.op_type in LAYERS and node.name not in own
        ]
        self._never += _between_floats(self.model)
        self._biases = _biases(self.model)

    def write(
        self,
        output: Path,
        *,
        in_float: Collection[str] = (),
        steps: Steps = NEAREST,
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

    def write_only(self, output: Path, node: str, *, steps: Steps = NEAREST) -> None:
        """Write the model in float but for one layer."""
        biases = [self._biases[node]] if node in self._biases else []
        self._write(output, steps, None, only=[node, *biases])

    def scales(self) -> tuple[LayerScale, ...]:
        """The scales of the layers of the file that has all of them in 8 bits.

        Raises:
            ValueError: If ONNX Runtime's quantiser cannot write it.
        """
        with workplace(self._scratch) as folder:
            self.write(folder / "int8.onnx")
            return tuple(layer_scales(folder / "int8.onnx", self.layers))

    def _check_ranges(self) -> None:
        read = {node.name: node.input[0] for node in self.model.graph.node}
        missing = [read[one.node] for one in self.layers if read[one.node] not in self.ranges]
        if missing:
            raise ValueError(
                "The ranges must be those of the file's activations, with the input of each layer "
                f"among them. {missing[0]} is not. Measure them anew on this file."
            )

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

        with workplace(self._scratch), as_value_error("quantise"):
            quantiser = QDQQuantizer(
                deepcopy(self.model),
                self._per_channel,
                self._reduce_range,
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [*only],
                [*exclude],
                [*LAYERS, *_BETWEEN],
                {
                    "WeightSymmetric": True,
                    "ActivationSymmetric": False,
                    "OpTypesToExcludeOutputQuantization": list(_MAKE_FLOATS),
                },
            )
            quantiser.quantize_model()
            model = ir.from_proto(quantiser.model.model)
        model.graph.sort()  # the quantiser puts its nodes behind all others
        replace_steps(model, steps)
        write_graph(model, output, metadata=metadata)


def _between_floats(model: onnx.ModelProto) -> list[str]:
    """Names of the operators of ``_BETWEEN`` that read what no layer makes as bytes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    in_bytes, names = set(), []
    for node in model.graph.node:
        if node.op_type in LAYERS and node.op_type not in _MAKE_FLOATS:
            in_bytes |= {*node.output}
        elif node.op_type in _BETWEEN:
            read = {*node.input} - constants - {""}
            if read and read <= in_bytes:
                in_bytes |= {*node.output}
            else:
                names.append(node.name)
    return names


def _biases(model: onnx.ModelProto) -> dict[str, str]:
    """The Add behind a layer that adds its bias, by the layer: both are in 8 bits, or neither."""
    constants = {tensor.name for tensor in model.graph.initializer}
    bytes_from = {*LAYERS} - {*_MAKE_FLOATS}
    layers = {node.output[0]: node.name for node in model.graph.node if node.op_type in bytes_from}
    return {
        layers[name]: node.name
        for node in model.graph.node
        if node.op_type == "Add" and constants & {*node.input}
        for name in node.input
        if name in layers
    }


def _measure(path: Path, folder: Path, batches: Iterable[Feeds], ranges: Ranges) -> Any:
    """Return the ranges of all activations."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[ranges]
    with as_value_error("measure the ranges of"):
        calibrator = create_calibrator(
            path,
            [*LAYERS, *_BETWEEN],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=method,
            use_external_data_format=is_large(path),
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


def _as_measured(ranges: ActivationRanges) -> Any:
    """Ranges as ONNX Runtime's calibration returns them."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    found = {name: TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, found)


class _Batches:
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else dict(batch)
