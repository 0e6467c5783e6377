"""Attention between sparse layers, as one operator.

    Y = softmax(scale · Q Kᵀ + mask) V,  heads side by side

ONNX Runtime transposes Q, K, V and Y in memory, and keeps the weights of all heads.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mfac_compress.export.sparse.compose import remove_unused, unused_name
from mfac_compress.export.sparse.graph import values_by_name
from mfac_compress.export.sparse.nodes import DOMAIN, VERSION

OFFSETS = ("query_offset", "key_offset", "value_offset")
"""Attributes of the operator, in the order of its first inputs."""


@dataclass(frozen=True)
class Attention:
    """The nodes between three values of layers and one that the next layer reads.

    Attributes:
        name: Name of its softmax.
        query: Name of the queries, ``[batch, queries, features]``, float32; head h is
            ``features[offset + h · size:][:size]``.
        key: Name of the keys, ``[batch, keys, features]``.
        value: Name of the values, ``[batch, keys, features]``.
        y: Name of the result, ``[batch, queries, heads · size]``.
        mask: Name of what is added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``
            or without some of the first axes; None if nothing is.
        heads: Number of heads.
        size: Features of a head.
        offsets: Of the first head in the features of queries, keys and values.
        scale: Factor of the scores before the mask is added; positive.
        nan_to_zero: Whether the weights of a query become zeros if any is NaN.
        length_first: Whether the first two axes of all but the mask are the length and the batch.
        flat: Whether these two are one axis of the result.
    """

    name: str
    query: str
    key: str
    value: str
    y: str
    mask: str | None
    heads: int
    size: int
    offsets: tuple[int, int, int]
    scale: float
    nan_to_zero: bool
    length_first: bool = False
    flat: bool = False

    @property
    def inputs(self) -> list[str]:
        """Names of the operator's inputs, in its order."""
        return [self.query, self.key, self.value, *([self.mask] if self.mask else [])]


def replace_attention(model: ir.Model, found: Sequence[Attention]) -> int:
    """Replace attention in a model.

    Args:
        model: Changed in place. Its values have the names of the graph in which attention was
            found. Sparse operators may have taken the place of some: attention that reads or makes
            one of these is left.
        found: What :func:`find_attention` returned.
    Returns:
        How many of them were replaced.
    """
    graph = model.graph
    values = values_by_name(graph)
    count = 0
    for each in found:
        if not values.keys() >= {*each.inputs, each.y}:
            continue
        nodes = [attention_node(each, [values[name] for name in each.inputs])]
        if each.flat:
            nodes.append(_flattened(nodes[0], values.keys()))
        old, new = values[each.y], nodes[-1].outputs[0]
        new.meta.update(old.meta)
        last = old.producer()
        ir.convenience.replace_nodes_and_values(graph, last, [last], nodes, [old], [new])
        values[each.y] = new
        count += 1
    if count:
        graph.opset_imports.setdefault(DOMAIN, VERSION)
    remove_unused(graph)
    return count


def _flattened(node: ir.Node, taken: Collection[str]) -> ir.Node:
    """Return a node that joins the first two axes of another's result, whose name it takes over.

    Args:
        node: Its result gets another name.
        taken: Names that are in use.
    """
    (result,) = node.outputs
    name = result.name
    result.name = unused_name(name, taken)
    return ir.node("Flatten", [result], {"axis": 2}, outputs=[ir.Value(name=name)])


def attention_node(found: Attention, inputs: Sequence[ir.Value]) -> ir.Node:
    """Return the node of an attention.

    Args:
        found: The attention; that its result is flat is left to another node.
        inputs: Queries, keys, values and, if there is one, the mask.
    """
    given = {
        "num_heads": found.heads,
        "head_size": found.size,
        **dict(zip(OFFSETS, found.offsets, strict=True)),
        "scale": found.scale,
        "nan_to_zero": int(found.nan_to_zero),
        "length_first": int(found.length_first),
    }
    return ir.node(
        "Attention",
        inputs,
        dict(sorted(given.items())),
        domain=DOMAIN,
        name=found.name,
        outputs=[ir.Value(name=found.y)],
    )
