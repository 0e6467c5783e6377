"""Operators that select elements of a tensor or bring them into another order."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.tracing import Program

aten = torch.ops.aten
# Operators whose result holds each element of their first argument once, and in some order.
REORDERINGS = {
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
SELECTIONS = {
    *REORDERINGS,
    aten.chunk.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    operator.getitem,
}


def ends(
    node: Node, positions: Tensor, places: Mapping[Node, int]
) -> Iterator[tuple[Node, Node, Tensor]]:
    """Yield the operators that compute with a tensor, through whatever selects or reorders it.

    Yields:
        The operator, its argument, and the position in the tensor of each of its elements.
    """
    for user in node.users:
        if user not in places:
            continue
        if is_selection(user, node):
            chosen = user.target(positions, *user.args[1:], **user.kwargs)
            yield from ends(user, chosen, places)
        else:
            yield user, node, positions


def source_of(node: Node, program: Program) -> tuple[Node, Tensor] | None:
    """The parameter that a node selects from, and the position of each element in it."""
    path = []
    while node not in program.tensors:
        if not node.args or not is_selection(node, node.args[0]):
            return None
        path.append(node)
        node = node.args[0]
    positions: Any = positions_in(shape_of(node))
    for each in reversed(path):
        positions = each.target(positions, *each.args[1:], **each.kwargs)
    return node, positions


def is_selection(user: Node, node: Node) -> bool:
    """Whether an operator does nothing but select from a node's value, or reorder it."""
    return user.target in SELECTIONS and user.all_input_nodes == [node] and user.args[0] is node


def only_user(node: Node, places: Mapping[Node, int]) -> Node | None:
    """The node's user, if there is one only. The model's output is a user too."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0] in places else None


def positions_in(shape: torch.Size) -> Tensor:
    """The position in the flattened tensor of each element."""
    return torch.arange(shape.numel()).view(shape)


def is_each_once(positions: Tensor, shape: torch.Size) -> bool:
    """Whether positions are all those in a tensor, in any order."""
    every = torch.arange(shape.numel())
    positions = positions.flatten()
    return torch.equal(positions, every) or torch.equal(positions.sort()[0], every)


def shape_of(node: Node) -> torch.Size:
    """Shape of a node's value, in which open lengths are symbols."""
    return node.meta["val"].shape


def same_shape(a: Node, b: Node) -> bool:
    """Whether two nodes' values have the same shape, whatever the open lengths."""
    return [str(n) for n in shape_of(a)] == [str(n) for n in shape_of(b)]
