"""Layer normalisation as an operator of the library, and the rounding to bytes after it:

    LayerNormalization(x) -> LayerNorm(x)
    q = QuantizeLinear(LayerNormalization(x)), z = DequantizeLinear(q)
        -> q, z = LayerNormQuantize(x)

No weight of it is sparse. But files with sparse operators need the library anyway, and between
sparse layers ONNX Runtime's kernel, which computes a value at a time, is a large part of what is
left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.compose import remove_unused
from mfac_compress.export.sparse.graph import (
    Graph,
    argument,
    attributes,
    is_operator,
    only_user,
    users,
)
from mfac_compress.export.sparse.nodes import DOMAIN
from mfac_compress.export.sparse.operator import Unsupported
from mfac_compress.export.sparse.patterns.dequantised import (
    Quantised,
    dequantised,
    quantised,
    unless_bytes,
)

_EPSILON = 1e-5  # ONNX's default


@dataclass(frozen=True)
class _Norm:
    """A layer norm, and what is computed with it.

    Attributes:
        nodes: The nodes that it replaces. The first reads what is normalised.
        made: The values that it makes: one of floats, or one of bytes and perhaps the floats that
            these stand for.
        output: Scale and zero point of the bytes; None if there are none.
    """

    nodes: tuple[ir.Node, ...]
    made: tuple[ir.Value, ...]
    output: tuple[float, int] | None = None


def use_layer_norm(model: ir.Model) -> int:
    """Compute layer norms along the last axis with the library's operators.

    Args:
        model: A model with other operators of the library, whose nodes have unique names. Changed
            in place.
    Returns:
        The number of layer norms that were replaced.
    """
    graph = Graph(model)
    norms = [_with_bytes(graph, node) for node in graph.nodes if _fits(graph, node)]
    for norm in norms:
        _replace(model.graph, norm)
    remove_unused(model.graph)
    return len(norms)


def layer_norm_node(
    name: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[str],
    epsilon: float,
    output: tuple[float, int] | None = None,
) -> ir.Node:
    """Build the node of a layer norm.

    Args:
        name: Name of the node.
        inputs: x, ``[..., n]``, float32; scale and perhaps bias, ``[n]``, constant.
        outputs: Name of y; or of the bytes, and perhaps of the floats that they stand for.
        epsilon: Positive.
        output: Scale and zero point of the bytes; None if there are none.
    """
    given = {"epsilon": float(epsilon)}
    if output is not None:
        given |= {"y_scale": float(output[0]), "y_zero_point": int(output[1])}
    return ir.node(
        "LayerNorm" if output is None else "LayerNormQuantize",
        inputs,
        given,
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=each) for each in outputs],
    )


def _fits(graph: Graph, node: ir.Node) -> bool:
    """Whether a node is a layer norm that the library computes."""
    if not is_operator(node, "LayerNormalization") or any(map(_is_used, node.outputs[1:])):
        return False
    given = attributes(node)
    if given.get("axis", -1) != -1 or given.get("stash_type", 1) != 1:
        return False
    return 0 < given.get("epsilon", _EPSILON) < np.inf and _has_constants(graph, node)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _has_constants(graph: Graph, node: ir.Node) -> bool:
    """Whether scale and bias are stored in the file, in float32 (as x is then), for one axis.

    A scale of one number may be that of all positions, which ONNX allows and the library does not.
    """
    scale, bias = (argument(node, place) for place in (1, 2))
    values = [scale] if bias is None else [scale, bias]
    arrays = [graph.constant(value) if _is_stored(value) else None for value in values]
    if any(array is None or array.dtype != np.float32 for array in arrays):
        return False
    return arrays[0].ndim == 1 and arrays[0].size > 1 and arrays[-1].shape == arrays[0].shape


def _is_stored(value: ir.Value | None) -> bool:
    """Whether ONNX Runtime has a value as an initializer, also if it folds nothing."""
    return value is not None and (
        value.is_initializer() or is_operator(value.producer(), "Constant")
    )


def _with_bytes(graph: Graph, node: ir.Node) -> _Norm:
    """Return a layer norm with the QuantizeLinear that alone reads its result, if there is one."""
    norm = _Norm((node,), tuple(node.outputs[:1]))
    last = only_user(node.outputs[0])
    output = quantised(graph, last, "its output")
    if isinstance(output, Unsupported) or unless_bytes(output, "its output", "make"):
        return norm
    step, zero_point = (each.reshape(-1)[0] for each in (output.scale, output.zero_point))
    with np.errstate(over="ignore"):
        arrays = [graph.constant(value) / step for value in node.inputs[1:] if value is not None]
    if not all(np.isfinite(array).all() for array in arrays):
        return norm
    back = _dequantised_for_library(graph, output)
    return _Norm(
        (node, last) if back is None else (node, last, back),
        (output.value,) if back is None else (output.value, back.outputs[0]),
        (float(step), int(zero_point)),
    )


def _dequantised_for_library(graph: Graph, output: Quantised) -> ir.Node | None:
    """Return the DequantizeLinear of a norm's bytes whose result only the library's operators read.

    ONNX Runtime's own quantised operators are made of the DequantizeLinear nodes before them.
    """
    for node in sorted(users(output.value) & graph.position.keys(), key=graph.position.__getitem__):
        if not is_operator(node, "DequantizeLinear") or node.outputs[0].is_graph_output():
            continue
        back = dequantised(graph, node.outputs[0], "it")
        if isinstance(back, Unsupported) or unless_bytes(back, "it", "take"):
            continue
        same = back.scale == output.scale and back.zero_point == output.zero_point
        readers = users(node.outputs[0])
        if same and readers and all(reader.domain == DOMAIN for reader in readers):
            return node
    return None


def _replace(graph: ir.Graph, norm: _Norm) -> None:
    first = norm.nodes[0]
    new = layer_norm_node(
        first.name,
        [first.inputs[0], *(argument(first, place) for place in (1, 2))],
        [value.name for value in norm.made],
        attributes(first).get("epsilon", _EPSILON),
        norm.output,
    )
    for old, made in zip(norm.made, new.outputs, strict=True):
        made.meta.update(old.meta)
    ir.convenience.replace_nodes_and_values(graph, first, norm.nodes, [new], norm.made, new.outputs)
