"""What follows a layer: its bias, a batch norm, the addition of a shortcut."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch.fx import Node
from torch.nn import functional as F

from mfac_compress.mfac.layerwise.layers import Layer, Norm, Residual, Use
from mfac_compress.mfac.layerwise.operators import Linear
from mfac_compress.mfac.layerwise.selections import (
    REORDERINGS,
    ends,
    is_each_once,
    only_user,
    positions_in,
    same_shape,
    shape_of,
    source_of,
)
from mfac_compress.mfac.layerwise.tracing import Program

aten = torch.ops.aten


def with_followers(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    """The layer with its bias, its batch norm and the additions that it flows into."""
    layer = _with_bias(layer, program, places)
    layer = _with_norm(layer, program, places)
    uses = tuple(replace(use, residual=_residual(use, program, places)) for use in layer.uses)
    return replace(layer, uses=uses)


def _with_bias(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    """The layer with its bias, if all its operators add one parameter, each row an own element."""
    uses, adding, rows, sources = [], set(), {}, set()
    for use in layer.uses:
        bias, node = use.bias, use.node
        following = only_user(node, places)
        if bias is None and following is not None:
            bias, node = _added_to_rows(use, following), following
        source = None if bias is None else source_of(bias, program)
        if source is None or source[1].numel() != use.operator.groups * use.operator.rows:
            return layer
        sources.add(source[0])
        adding.add(node)
        rows[use.first] = source[1].view(-1, layer.matrix.rows)
        uses.append(replace(use, end=node))
    if len(sources) > 1:
        return layer
    (parameter,) = sources
    shape = shape_of(parameter)
    order = torch.cat([rows[first] for first in sorted(rows)])
    users = {user for user, _, _ in ends(parameter, positions_in(shape), places)}
    if users != adding or not is_each_once(order, shape):
        return layer
    name = program.tensors[parameter]
    return replace(layer, uses=tuple(uses), bias=name, bias_order=order)


def _added_to_rows(use: Use, node: Node) -> Node | None:
    """What an addition adds to each row of a linear layer's output; None if it is no such one."""
    is_by_rows = isinstance(use.operator, Linear) and use.operator.axis == -1
    if not is_by_rows or node.target is not aten.add.Tensor or node.kwargs:
        return None
    others = [n for n in node.args if isinstance(n, Node) and n is not use.node]
    is_bias = len(others) == 1 and tuple(shape_of(others[0])) == (use.operator.rows,)
    return others[0] if is_bias else None


def _with_norm(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    """The layer with the batch norm that alone takes its output, and has statistics of its own."""
    (use, *others) = layer.uses
    node = only_user(use.end, places)
    if others or node is None or node.target is not F.batch_norm or node.args[0] is not use.end:
        return layer
    # Channels lie along the second axis, which is that of the rows in a convolution's output.
    is_flat = isinstance(use.operator, Linear) and use.operator.axis == -1
    if isinstance(use.operator, Linear) and not (is_flat and len(shape_of(use.end)) == 2):
        return layer
    _, mean, var, weight, bias, _, _, eps = node.args
    names = [None if n is None else program.tensors.get(n, "") for n in (mean, var, weight, bias)]
    is_own = mean is not None and sum(user in places for user in mean.users) == 1
    if not is_own or "" in names:
        return layer
    return replace(layer, uses=(replace(use, end=node),), norm=Norm(*names, eps))


def _residual(use: Use, program: Program, places: Mapping[Node, int]) -> Residual | None:
    node, path = use.end, []
    while (user := only_user(node, places)) is not None:
        if user.target in REORDERINGS and user.args[0] is node:
            path.append(user)
            node = user
            continue
        operands = [n for n in user.args if isinstance(n, Node) and n is not node]
        is_sum = user.target is aten.add.Tensor and not user.kwargs and len(operands) == 1
        if is_sum and same_shape(operands[0], node) and operands[0] in places:
            return Residual(tuple(path), operands[0], user)
        return None
    return None


def shortcuts_first(program: Program, layers: Iterable[Layer]) -> Program:
    """Run each shortcut before the last layer of its branch, so that this one can make up for it.

    Where both summands of an addition come from layers, the one with more columns runs last.
    """
    places = {node: i for i, node in enumerate(program.nodes)}
    best: dict[Node, Use] = {}
    for use in (use for layer in layers for use in layer.uses if use.residual):
        other = best.setdefault(use.residual.total, use)
        if use.operator.columns > other.operator.columns:
            best[use.residual.total] = use
    before = {node: {*node.all_input_nodes} & {*places} for node in program.nodes}
    for use in best.values():
        for node in use.residual.needs & {*places}:
            if use.node not in _ancestors(node, before):
                before[use.node].add(node)
    return replace(program, nodes=tuple(_sorted(places, before)))


def _sorted(places: Mapping[Node, int], before: Mapping[Node, set[Node]]) -> Iterator[Node]:
    """The nodes in their order, but each after those that must come before it."""
    done: set[Node] = set()
    for node in places:
        stack = [node]
        while stack:
            waiting = sorted(before[stack[-1]] - done, key=places.__getitem__, reverse=True)
            if stack[-1] not in done and not waiting:
                done.add(stack[-1])
                yield stack[-1]
            if waiting:
                stack.extend(waiting)
            else:
                stack.pop()


def _ancestors(node: Node, before: Mapping[Node, set[Node]]) -> set[Node]:
    found: set[Node] = set()
    remaining = [node]
    while remaining:
        node = remaining.pop()
        if node not in found:
            found.add(node)
            remaining.extend(before.get(node, ()))
    return found
