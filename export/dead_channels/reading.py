"""Read the nodes of a graph in order, and note what becomes of the channels of each value."""

from collections.abc import Callable

import onnx_ir as ir

from mfac_compress.export.dead_channels import attention, elementwise, layers, moves, pooling
from mfac_compress.export.dead_channels.channels import Channels
from mfac_compress.export.sparse.graph import Graph

Reader = Callable[[Channels, ir.Node], bool]
"""Notes what a node does; False where it does not know, so that all channels stay."""


def _matmul(channels: Channels, node: ir.Node) -> bool:
    if node.inputs[1].is_initializer():
        return layers.product(channels, node)
    return attention.batched_product(channels, node)


def _reshape(channels: Channels, node: ir.Node) -> bool:
    return attention.swap(channels, node) or moves.reshape(channels, node)


_READERS: dict[str, Reader] = {
    **dict.fromkeys(elementwise.UNARY | elementwise.BINARY, elementwise.elementwise),
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), pooling.pooling
    ),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), pooling.reduction),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "Softmax"), pooling.along_axis),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
    "BatchNormalization": layers.batch_norm,
    "Concat": moves.concatenation,
    "Conv": layers.convolution,
    "ConvTranspose": layers.transposed_convolution,
    "Gather": moves.gathering,
    "Gemm": layers.gemm,
    "MatMul": _matmul,
    "Pad": moves.padding,
    "Reshape": _reshape,
    "Shape": attention.lengths,
    "Slice": moves.slicing,
    "Split": moves.division,
    "Transpose": moves.transpose,
}


def read_channels(model: ir.Model) -> Channels:
    """Return the channels of a model's main graph.

    Args:
        model: Nodes in topological order. Not changed.
    """
    channels = Channels(Graph(model))
    for node in channels.graph.nodes:
        reader = _READERS.get(node.op_type) if node.domain == "" else None
        if node not in channels.done and (reader is None or not reader(channels, node)):
            channels.give_up(node)
    channels.close()
    return channels
