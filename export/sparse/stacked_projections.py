"""Projections of one input for one attention, stacked into one sparse operator:

    Attention(X Qᵀ, X Kᵀ, X Vᵀ) -> Attention(Y, Y, Y),  Y = X [Q; K; V]ᵀ

A sparse linear operator turns the rows of its input into columns before it multiplies. The stacked
one does so once. Attention reads queries, keys and values at offsets in one tensor as it reads them
in three.
"""

from collections.abc import Collection, Hashable, Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.attention import OFFSETS
from mfac_compress.export.sparse.compose import (
    add_constants,
    remove_unused,
    unused_name,
    value_names,
)
from mfac_compress.export.sparse.graph import argument, attributes
from mfac_compress.export.sparse.nodes import DOMAIN, constant_inputs

_PER_OUTPUT = {"SparseLinear": ("bias",), "SparseQLinearToFloat": ("scales", "bias")}
"""Linear operators that make floats, and their inputs with a number for each output. After these
comes the residual."""
_FIRST_PER_OUTPUT = 4


def stack_projections(model: ir.Model) -> int:
    """Stack the sparse operators that read one input and are read by one attention only.

    Two of three are stacked where the third reads another input, as in cross-attention. Each output
    sums the same products in the same order, so its bits stay as they are. In float32 they may not
    where a layer stores a few percent of its weights only: it is then summed in fewer parts.

    Args:
        model: A model with sparse operators and the library's Attention. Changed in place.
    Returns:
        The number of stacked operators.
    """
    graph = model.graph
    taken, stored, count = value_names(model) | {node.name for node in graph}, {}, 0
    for attention in [each for each in graph if _is_ours(each, ["Attention"])]:
        for layers in _groups(attention):
            node = _stacked(layers, taken)
            add_constants(graph, node, stored, taken)
            graph.insert_before(attention, node)
            _read_stacked(attention, layers, node.outputs[0])
            count += 1
    remove_unused(graph)
    return count


def _is_ours(node: ir.Node | None, kinds: Collection[str]) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type in kinds


def _groups(attention: ir.Node) -> list[list[ir.Node]]:
    """Return the layers that can be stacked of those that make an attention's operands."""
    groups: dict[Hashable, list[ir.Node]] = {}
    for value in dict.fromkeys(attention.inputs[: len(OFFSETS)]):
        if _is_stackable(value):
            layer = value.producer()
            groups.setdefault(_shared(layer), []).append(layer)
    return [layers for layers in groups.values() if len(layers) > 1]


def _is_stackable(value: ir.Value) -> bool:
    """Whether an operand of an attention is read by nothing else, and made by a sparse layer that
    adds no residual and whose last block of outputs is whole."""
    layer, uses = value.producer(), list(value.uses())
    if not _is_ours(layer, _PER_OUTPUT) or value.is_graph_output():
        return False
    if len({use.node for use in uses}) > 1 or any(use.idx >= len(OFFSETS) for use in uses):
        return False
    residual = argument(layer, _FIRST_PER_OUTPUT + len(_PER_OUTPUT[layer.op_type]))
    given = attributes(layer)
    return residual is None and given["out_features"] % given.get("block", 1) == 0


def _shared(layer: ir.Node) -> Hashable:
    """Return what layers must have in common to be stacked: all but weights and outputs."""
    given = {key: each for key, each in attributes(layer).items() if key != "out_features"}
    return layer.op_type, layer.inputs[0], tuple(sorted(given.items()))


def _stacked(layers: Sequence[ir.Node], taken: Collection[str]) -> ir.Node:
    """Return a node that makes the outputs of some layers side by side.

    Its attributes list the layers' names and numbers of outputs, by which the weights are audited.

    Args:
        layers: At least two, alike but for weights and outputs.
        taken: Names that are in use.
    """
    name = unused_name("+".join(layer.name for layer in layers), taken)
    outputs = [_outputs(layer) for layer in layers]
    given = attributes(layers[0]) | {
        "out_features": sum(outputs),
        "stacked_names": [layer.name for layer in layers],
        "stacked_outputs": outputs,
    }
    return ir.node(
        layers[0].op_type,
        [layers[0].inputs[0], *constant_inputs(name, _arrays(layers))],
        dict(sorted(given.items())),
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=unused_name(f"{name}.y", taken))],
    )


def _outputs(layer: ir.Node) -> int:
    return attributes(layer)["out_features"]


def _arrays(layers: Sequence[ir.Node]) -> dict[str, np.ndarray | None]:
    """Return the constant inputs of stacked layers by name, in the operator's order."""
    values, indices, starts = (
        [layer.inputs[place].const_value.numpy() for layer in layers]
        for place in range(1, _FIRST_PER_OUTPUT)
    )
    stacked = {
        "values": np.concatenate(values),
        "indices": np.concatenate(indices),
        "starts": _counted_on(starts),
    }
    for place, name in enumerate(_PER_OUTPUT[layers[0].op_type], _FIRST_PER_OUTPUT):
        stacked[name] = _per_output(layers, place)
    return stacked


def _counted_on(starts: Sequence[np.ndarray]) -> np.ndarray:
    """Join starts, each ``[groups + 1]``, counting on from the end of one layer in the next."""
    counts = [np.diff(each) for each in starts]
    return np.cumsum(np.concatenate([[0], *counts])).astype(np.int32)


def _per_output(layers: Sequence[ir.Node], place: int) -> np.ndarray | None:
    """Join an input that has a number for each output, 0 where a layer has none; None if all have
    none."""
    values = [argument(layer, place) for layer in layers]
    if not any(values):
        return None
    return np.concatenate(
        [
            np.zeros(_outputs(layer), np.float32) if value is None else value.const_value.numpy()
            for layer, value in zip(layers, values, strict=True)
        ]
    )


def _read_stacked(attention: ir.Node, layers: Sequence[ir.Node], stacked: ir.Value) -> None:
    """Let an attention read the outputs of layers from those of the stacked one."""
    begins = accumulate(map(_outputs, layers), initial=0)
    begin_of = {layer.outputs[0]: begin for layer, begin in zip(layers, begins, strict=False)}
    for place, name in enumerate(OFFSETS):
        begin = begin_of.get(attention.inputs[place])
        if begin is not None:
            offset = attributes(attention)[name] + begin
            attention.attributes[name] = ir.AttrInt64(name, offset)
            attention.replace_input_with(place, stacked)
