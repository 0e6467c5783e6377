"""Which values stay in the kernels' own layout, `planes`.

A value can if a sparse convolution makes it and only sparse convolutions read it, as their input or
as their residual.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from mfac_compress.export.sparse.format import Block
from mfac_compress.export.sparse.graph import users
from mfac_compress.export.sparse.operator import SparseOperator


class Placement(NamedTuple):
    """How an operator is computed.

    Attributes:
        block: How the weight is stored.
        planes: Whether its output stays in planes if that is possible.
        depthwise: The depthwise convolution that reads its output, if one node computes both.
    """

    block: Block
    planes: bool = True
    depthwise: SparseOperator | None = None


Plan = Mapping[SparseOperator, Placement]
"""The operators to be computed by the kernels."""


def in_planes(plan: Plan) -> frozenset[str]:
    """Return the names of the values that stay in planes if all of a plan is carried out."""
    wanted = {operator.y for operator, placement in plan.items() if placement.planes}
    return frozenset(value.name for value in wanted & _could_be(plan))


KINDS = ("all", "windowed", "none")
"""Which values are in planes: all that can be; only those read by windows larger than one pixel,
for which the layout is meant (its border makes every image larger); none. Depthwise convolutions
read and write nchw, for which they have kernels of their own."""


def assign_layouts(blocks: Mapping[SparseOperator, Block], kind: str) -> Plan:
    """Return the plan with these operators and blocks, and one of the ``KINDS`` of layout."""
    wanted = _could_be(blocks) if kind != "none" else frozenset()
    wanted -= {value for o in blocks if o.is_depthwise for value in (o.x, o.y, o.residual)}
    if kind == "windowed":
        wanted &= {o.x for o in blocks if o.takes_planes and max(o.weight.shape[2:]) > 1}
    return {operator: Placement(block, operator.y in wanted) for operator, block in blocks.items()}


def with_depthwise(plan: Plan) -> Iterator[tuple[SparseOperator, SparseOperator]]:
    """Yield the convolutions that a node could compute with the depthwise one after them, and that
    one: nothing else reads what is between them, and all their images are in nchw."""
    planes = in_planes(plan)
    after = {operator.x: operator for operator in plan if operator.has_depthwise_kernel}
    for operator in plan:
        follows = after.get(operator.y)
        if follows is None or not operator.takes_depthwise or operator.y.is_graph_output():
            continue
        names = {operator.x.name, operator.y.name, follows.y.name}
        if users(operator.y) <= set(follows.nodes) and not names & planes:
            yield operator, follows


def _could_be(operators: Collection[SparseOperator]) -> frozenset[ir.Value]:
    return _internal_values([operator for operator in operators if operator.takes_planes])


def _internal_values(operators: Collection[SparseOperator]) -> frozenset[ir.Value]:
    """Return the values that one of the operators makes and only these operators read."""
    inside = {node for each in operators for node in (*each.nodes, *each.feeding)}
    made = (operator.y for operator in operators)
    return frozenset(y for y in made if not y.is_graph_output() and users(y) <= inside)


def chains(operators: Sequence[SparseOperator]) -> list[list[SparseOperator]]:
    """Group the operators that could pass images to each other.

    Float operators pass them in planes. Quantised ones use the same layout as the file, but ONNX
    Runtime's own operators transpose images at both ends of a chain.

    Args:
        operators: All that could be computed by sparse operators.
    Returns:
        Groups in the graph's order; each operator is in one.
    """
    quantised = [o for o in operators if o.window and o.is_quantised]
    shared = _could_be(operators) | _internal_values(quantised)
    group = {operator.y: {operator} for operator in operators}
    for operator in operators:
        for value in (operator.x, operator.residual):
            if value in shared and group[value] is not group[operator.y]:
                merged = group[value] | group[operator.y]
                for member in merged:
                    group[member.y] = merged
    order = {operator.y: position for position, operator in enumerate(operators)}
    unique = {id(members): members for members in group.values()}
    return [sorted(members, key=lambda member: order[member.y]) for members in unique.values()]
