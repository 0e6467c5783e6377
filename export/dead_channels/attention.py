"""Products of two activations, in which heads are independent of each other."""

import numpy as np
import onnx_ir as ir

from mfac_compress.export.dead_channels.channels import Channels, shape_of
from mfac_compress.export.sparse.graph import (
    Graph,
    argument,
    attributes,
    is_operator,
    only_user,
    users,
)

_REST = -1


def batched_product(channels: Channels, node: ir.Node) -> bool:
    """Read a MatMul of two activations. A head's channels go together, in both and the result."""
    found = [channels.read(node, value) for value in node.inputs]
    if all(each is None for each in found):
        return True
    if any(each is None or each.ndim < 3 for each in found):
        return False
    heads = [each[..., :1, :1] for each in found]
    if heads[0].shape != heads[1].shape or heads[0].size == 1:
        return False
    for each, head in zip(found, heads, strict=True):
        channels.classes.couple(each, head)
    channels.classes.couple(*heads)
    channels.of_value[node.outputs[0]] = heads[0]
    zeros = [_zero_heads(channels.constants.get(v), heads[0].shape) for v in node.inputs]
    channels.constants[node.outputs[0]] = np.where(zeros[0] | zeros[1], 0.0, np.nan)
    return True


def _zero_heads(known: np.ndarray | None, form: tuple[int, ...]) -> np.ndarray:
    if known is None or known.ndim != len(form):
        return np.zeros(form, dtype=bool)
    return np.broadcast_to((known == 0).all(axis=(-2, -1), keepdims=True), form)


def swap(channels: Channels, node: ir.Node) -> bool:
    """Read the first of three nodes by which the exporter swaps the last two axes of a key.

    x -> Reshape to three axes -> Transpose -> Reshape, with lengths that are read from x when the
    file runs, and so follow it.
    """
    last, x = _last_of_swap(channels.graph, node), node.inputs[0]
    if last is None:
        return False
    y, shape = last.outputs[0], shape_of(x)
    for each in (node, only_user(node.outputs[0]), last):
        channels.done.add(each)
    y.shape = ir.Shape([*shape[:-2], shape[-1], shape[-2]])
    found, known = channels.read(node, x), channels.constants.get(x)
    for values, array in ((channels.of_value, found), (channels.constants, known)):
        if array is not None:
            values[y] = array.swapaxes(-1, -2)
    return True


def lengths(channels: Channels, node: ir.Node) -> bool:
    """Read a Shape: of axes without channels, or for swaps of its input's last two axes."""
    x, found = node.inputs[0], channels.read(node, node.inputs[0])
    if found is None:
        return True
    given = attributes(node)
    axes = range(found.ndim)[given.get("start", 0) : given.get("end", found.ndim)]
    if all(found.shape[axis] == 1 for axis in axes):
        return True
    swaps = [each for each in users(x) if is_operator(each, "Reshape")]
    ends = {each: _last_of_swap(channels.graph, each) for each in swaps}
    known = {*ends, *ends.values()} if None not in ends.values() else set()
    waiting, reached = [node], set()
    while waiting:
        each = waiting.pop()
        if is_operator(each, "Shape", "Slice", "Concat"):
            waiting += [user for value in each.outputs for user in users(value)]
        else:
            reached.add(each)
    return reached <= known


def _last_of_swap(graph: Graph, first: ir.Node) -> ir.Node | None:
    """Return the third node of a swap of the last two axes; None if the node begins none."""
    turned = only_user(first.outputs[0])
    if not is_operator(turned, "Transpose") or attributes(turned).get("perm") != (0, 2, 1):
        return None
    last, x = only_user(turned.outputs[0]), first.inputs[0]
    if not is_operator(last, "Reshape") or last.inputs[0] is not turned.outputs[0]:
        return None
    shape = shape_of(x)
    if shape is None:
        return None
    *batch, rows, columns = range(len(shape))
    as_read = (_axes_read(graph, first, x), _axes_read(graph, last, x))
    return last if as_read == ([_REST, rows, columns], [*batch, columns, rows]) else None


def _axes_read(graph: Graph, node: ir.Node, x: ir.Value) -> list[int] | None:
    """Return the axes of x whose lengths a Reshape takes, in order; -1 for what remains."""
    joined = argument(node, 1).producer()
    if not is_operator(joined, "Concat"):
        return None
    axes: list[int] = []
    for part in joined.inputs:
        cut = part.producer()
        if graph.scalar(part) == _REST:
            axes.append(_REST)
        elif is_operator(cut, "Slice") and _is_shape_of(cut.inputs[0], x):
            start, end = (graph.scalar(argument(cut, place)) for place in (1, 2))
            if start is None or end is None or len(cut.inputs) > 3:
                return None
            axes += range(len(x.shape))[int(start) : int(end)]
        else:
            return None
    return axes


def _is_shape_of(value: ir.Value, x: ir.Value) -> bool:
    node = value.producer()
    whole = is_operator(node, "Shape") and not attributes(node).get("start", 0)
    return whole and "end" not in node.attributes and node.inputs[0] is x
