"""Which operators of a model are layers, what they share, and what follows them."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from mfac_compress.mfac.layerwise.matrix import LayerMatrix
from mfac_compress.mfac.layerwise.operators import Convolution, Linear
from mfac_compress.mfac.layerwise.recognise import Product, product
from mfac_compress.mfac.layerwise.tracing import Program

aten = torch.ops.aten
# Operators whose result holds each element of their first argument once, and in some order.
_REORDERINGS = {
    aten.detach.default,
    aten.flatten.using_ints,
    aten.movedim.int,
    aten.mT.default,
    aten.numpy_T.default,
    aten.permute.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
}
# ... or at most once, in one or several tensors.
_SELECTIONS = {
    *_REORDERINGS,
    aten.chunk.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    operator.getitem,
}


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm that follows a layer: parameters and buffers by name, None where it has none.

    Args:
        mean: Running mean.
        var: Running variance.
        weight: Scale.
        bias: Shift.
        eps: Added to the variance.
    """

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float


@dataclass(frozen=True, eq=False)
class Residual:
    """An addition of a layer's output, perhaps normalised and in another shape.

    Args:
        path: Nodes from the layer, or its batch norm, to the addition, which bring the output into
            the addition's shape.
        other: The other summand.
        total: The addition.
    """

    path: tuple[Node, ...]
    other: Node
    total: Node

    def to_output(
        self, program: Program, values: Mapping[Node, Any], value: Tensor, like: Tensor
    ) -> Tensor:
        """Bring a tensor of the addition's shape into that of the layer's output.

        Args:
            program: Has the path.
            values: Those of the nodes before the layer.
            value: Of the addition's shape.
            like: Of the output's shape.
        """
        if not self.path:
            return value
        order = torch.arange(like.numel(), device=like.device).view(like.shape)
        for node in self.path:
            order = program.value(node, {}, {**values, node.args[0]: order})
        back = torch.empty_like(value).flatten()
        back[order.flatten()] = value.flatten()
        return back.view(like.shape)

    @property
    def needs(self) -> set[Node]:
        """Nodes that must come before the layer for its output to make up for the other summand."""
        lengths = {n for node in self.path for n in node.all_input_nodes[1:]}
        return {self.other, *lengths}


@dataclass(frozen=True, eq=False)
class Use:
    """One operator that multiplies a weight tensor, or a part of it, with an input.

    Args:
        node: The operator.
        input: Its input.
        operator: How inputs and outputs are laid out.
        first: First of the layer's groups that it multiplies.
        split: Number of the layer's groups that each group of the operator consists of.
        bias: What the operator adds to its output; None if nothing.
        end: The node after which the output has its bias and is normalised.
        residual: The addition that the end flows into, and into nothing else.
    """

    node: Node
    input: Node
    operator: Linear | Convolution
    first: int
    split: int
    bias: Node | None
    end: Node
    residual: Residual | None = None

    @property
    def groups(self) -> slice:
        """The layer's groups that it multiplies."""
        return slice(self.first, self.first + self.operator.groups * self.split)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight tensor and the operators that multiply it with their inputs.

    Args:
        name: The parameter.
        matrix: Its matrices.
        uses: The operators, in the order in which they run. Nearly always one.
        bias: Parameter that is added to the outputs, and to nothing else; None if there is none.
        bias_order: Position in it of each row of the matrices. Shape ``[g, r]``.
        norm: The batch norm that alone takes the outputs; None if there is none.
    """

    name: str
    matrix: LayerMatrix
    uses: tuple[Use, ...]
    bias: str | None = None
    bias_order: Tensor | None = None
    norm: Norm | None = None


def find_layers(
    program: Program, shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Find the layers of a model.

    Args:
        program: The model's operators.
        shapes: Of all its parameters by name.

    Returns:
        Layers by the names of their weights, in the order in which they run; and the reason for
        each of the other parameters.
    """
    places = {node: i for i, node in enumerate(program.nodes)}
    nodes = {name: node for node, name in program.tensors.items()}
    layers, reasons = {}, {}
    for name, shape in shapes.items():
        ends = list(_ends(nodes[name], _positions(shape), places)) if name in nodes else []
        found = _layer(program, name, shape, ends, places)
        if isinstance(found, Layer):
            layers[name] = found
        else:
            reasons[name] = found
    ordered = sorted(layers.values(), key=lambda layer: places[layer.uses[0].node])
    return {layer.name: _with_followers(layer, program, places) for layer in ordered}, reasons


def _layer(
    program: Program,
    name: str,
    shape: torch.Size,
    ends: list[tuple[Node, Node, Tensor]],
    places: Mapping[Node, int],
) -> Layer | str:
    """The layer of a parameter, or the reason why it has none."""
    if not ends:
        return "no operator that leads to an output uses it"
    products: list[tuple[Product, Tensor]] = []
    for user, operand, positions in ends:
        found = product(user, operand)
        if isinstance(found, str):
            return found
        products.append((found, found.matrices(positions)))
    products.sort(key=lambda each: places[each[0].node])
    parts: list[Tensor] = []
    for _, matrices in products:
        if not any(torch.equal(matrices, part) for part in parts):
            parts.append(matrices)
    if len({part.shape[-1] for part in parts}) > 1:
        return "several operators use parts of it of differing widths"
    every = torch.cat([part.flatten() for part in parts])
    if len(every) != shape.numel() or not torch.equal(every.sort()[0], _positions(shape).flatten()):
        return "its operators use a part of it, or some part more than once"
    rows = gcd(*(part.shape[1] for part in parts))
    groups = [part.shape[0] * part.shape[1] // rows for part in parts]
    first = [sum(groups[:i]) for i in range(len(parts))]
    uses = []
    for found, matrices in products:
        number = next(i for i, part in enumerate(parts) if torch.equal(part, matrices))
        uses.append(
            Use(
                found.node,
                found.input,
                found.operator,
                first[number],
                matrices.shape[1] // rows,
                found.bias,
                found.node,
            )
        )
    is_plain = torch.equal(every, _positions(shape).flatten())
    matrix = LayerMatrix(
        tuple(shape), sum(groups), rows, parts[0].shape[-1], None if is_plain else every
    )
    return Layer(name, matrix, tuple(uses))


def _with_followers(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    """The layer with its bias, its batch norm and the additions that it flows into."""
    layer = _with_bias(layer, program, places)
    layer = _with_norm(layer, program, places)
    uses = tuple(replace(use, residual=_residual(use, program, places)) for use in layer.uses)
    return replace(layer, uses=uses)


def _with_bias(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    names, rows, ends, users = set(), {}, [], set()
    for use in layer.uses:
        bias, user, end = use.bias, use.node, use.node
        following = _only_user(use.node, places)
        if bias is None and following is not None:
            bias = _added_to_rows(use, following)
            user = end = following
        source = None if bias is None else _source(bias, program)
        if source is None or source[1].numel() != use.operator.groups * use.operator.rows:
            return layer
        names.add(source[0])
        users.add(user)
        ends.append(end)
        rows[use.first] = source[1].view(-1, layer.matrix.rows)
    if len(names) > 1:
        return layer
    (node,) = names
    order = torch.cat([rows[first] for first in sorted(rows)])
    all_users = {user for user, _, _ in _ends(node, _positions(_shape(node)), places)}
    is_own = all_users == users and order.numel() == _shape(node).numel()
    if not is_own or not torch.equal(order.flatten().sort()[0], _positions(_shape(node)).flatten()):
        return layer
    uses = tuple(replace(use, end=end) for use, end in zip(layer.uses, ends, strict=True))
    return replace(layer, uses=uses, bias=program.tensors[node], bias_order=order)


def _added_to_rows(use: Use, node: Node) -> Node | None:
    """What an addition adds to each row of a linear layer's output; None if it is no such one."""
    if (
        node.target is not aten.add.Tensor
        or node.kwargs
        or use.operator != Linear(use.operator.rows, use.operator.columns)
    ):
        return None
    other = [n for n in node.args if isinstance(n, Node) and n is not use.node]
    is_bias = len(other) == 1 and tuple(_shape(other[0])) == (use.operator.rows,)
    return other[0] if is_bias else None


def _with_norm(layer: Layer, program: Program, places: Mapping[Node, int]) -> Layer:
    if len(layer.uses) > 1:
        return layer
    (use,) = layer.uses
    norm = _only_user(use.end, places)
    if norm is None or norm.target is not F.batch_norm or norm.args[0] is not use.end:
        return layer
    if isinstance(use.operator, Linear) and (len(_shape(use.end)) != 2 or use.operator.axis != -1):
        return layer
    _, mean, var, weight, bias, _, _, eps = norm.args
    named = [None if node is None else program.tensors.get(node) for node in (mean, var)]
    affine = [None if node is None else program.tensors.get(node) for node in (weight, bias)]
    missing = any(
        node is not None and name is None for node, name in zip((weight, bias), affine, strict=True)
    )
    if None in named or missing or sum(user in places for user in mean.users) != 1:
        return layer
    return replace(
        layer, uses=(replace(use, end=norm),), norm=Norm(named[0], named[1], *affine, eps)
    )


def _residual(use: Use, program: Program, places: Mapping[Node, int]) -> Residual | None:
    node, path = use.end, []
    while (user := _only_user(node, places)) is not None:
        if user.target in _REORDERINGS and user.args[0] is node:
            path.append(user)
            node = user
            continue
        operands = [n for n in user.args if isinstance(n, Node) and n is not node]
        is_sum = user.target is aten.add.Tensor and not user.kwargs and len(operands) == 1
        if is_sum and _same_shape(operands[0], node) and operands[0] in places:
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


def _ends(
    node: Node, positions: Tensor, places: Mapping[Node, int]
) -> Iterator[tuple[Node, Node, Tensor]]:
    """Yield the operators that compute with a tensor, through whatever selects or reorders it.

    Yields:
        The operator, its argument, and the position in the tensor of each of its elements.
    """
    for user in node.users:
        if user not in places:
            continue
        if _is_selection(user, node):
            chosen = user.target(positions, *user.args[1:], **user.kwargs)
            yield from _ends(user, chosen, places)
        else:
            yield user, node, positions


def _source(node: Node, program: Program) -> tuple[Node, Tensor] | None:
    """The parameter that a node selects from, and the position of each element in it."""
    path = []
    while node not in program.tensors:
        if not node.args or not _is_selection(node, node.args[0]):
            return None
        path.append(node)
        node = node.args[0]
    positions: Any = _positions(_shape(node))
    for each in reversed(path):
        positions = each.target(positions, *each.args[1:], **each.kwargs)
    return node, positions


def _is_selection(user: Node, node: Node) -> bool:
    return user.target in _SELECTIONS and user.all_input_nodes == [node] and user.args[0] is node


def _only_user(node: Node, places: Mapping[Node, int]) -> Node | None:
    """The node's user, if there is one only. The model's output is a user too."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0] in places else None


def _positions(shape: torch.Size) -> Tensor:
    return torch.arange(shape.numel()).view(shape)


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def _same_shape(a: Node, b: Node) -> bool:
    return [str(n) for n in _shape(a)] == [str(n) for n in _shape(b)]
