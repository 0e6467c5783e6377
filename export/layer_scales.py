"""The scales that a file in 8 bits gives its layers, so that a training can round as it does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mfac_compress.export.quantised_weights import output_axis
from mfac_compress.export.quantiser_parts import QuantisableLayer


@dataclass(frozen=True)
class LayerScale:
    """How a layer of a file reads its input and its weight in 8 bits.

    Args:
        weight: Name of the weight in the float file.
        scale: What a step of the input stands for; a float32 value.
        zero_point: The step of the input that stands for 0, in 0..255.
        axis: Axis of the outputs in the weight, as the file has it.
    """

    weight: str
    scale: float
    zero_point: int
    axis: int


def layer_scales(path: Path, layers: Iterable[QuantisableLayer]) -> Iterator[LayerScale]:
    """Yield the scales of those layers that a file has in 8 bits.

    Args:
        path: A file of :class:`~mfac_compress.export.quantise.StaticQuantiser`.
        layers: Those of the float file, in its order; a weight that several nodes read comes as
            often.
    """
    nodes = {node.name: node for node in ir.load(path).graph}
    for layer in layers:
        node = nodes[layer.node]
        source, weight = (value.producer() for value in node.inputs[:2])
        if not (_dequantizes(source) and _dequantizes(weight)):
            continue
        scale, zero_point = (value.const_value.numpy() for value in source.inputs[1:3])
        axis = output_axis(node, len(weight.inputs[0].const_value.shape))
        yield LayerScale(layer.weight, scale.item(), int(zero_point.item()), axis)


def _dequantizes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"
