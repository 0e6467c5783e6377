"""Which values stay in the kernels' own layout, `planes`.

A value can if a sparse convolution makes it and only sparse convolutions read it, as their input or
as their residual.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mfac_compress.export.sparse.find import Operator
from mfac_compress.export.sparse.graph import Graph


class Placement(NamedTuple):
    """How an operator is computed.

    Attributes:
        block: Number of outputs that share their inputs; for a quantised layer, of inputs that are
            stored together.
        planes: Whether its output stays in planes if that is possible.
    """

    block: int
    planes: bool = True


Plan = Mapping[Operator, Placement]
"""The operators to be computed by the kernels."""


def in_planes(graph: Graph, plan: Plan) -> frozenset[str]:
    """Return the names of the values that stay in planes.

    Args:
        graph: The graph of the operators.
        plan: All that will be computed by sparse operators.
    """
    wanted = {operator.y for operator, placement in plan.items() if placement.planes}
    return wanted & _could_be(graph, plan)


KINDS = ("all", "windowed", "none")
"""Which values are in planes: all that can be; only those read by windows larger than one pixel,
for which the layout is meant (its border makes every image larger); none."""


def assign_layouts(graph: Graph, blocks: Mapping[Operator, int], kind: str) -> Plan:
    """Return the plan with these operators and block sizes, and one of the ``KINDS`` of layout."""
    wanted = _could_be(graph, blocks) if kind != "none" else frozenset()
    if kind == "windowed":
        wanted &= {o.x for o in blocks if o.takes_planes and max(o.weight.shape[2:]) > 1}
    return {operator: Placement(block, operator.y in wanted) for operator, block in blocks.items()}


def _could_be(graph: Graph, operators: Collection[Operator]) -> frozenset[str]:
    return _internal_values(graph, [operator for operator in operators if operator.takes_planes])


def _internal_values(graph: Graph, operators: Collection[Operator]) -> frozenset[str]:
    """Return the values that one of the operators makes and only these operators read."""
    inside = {position for each in operators for position in (*each.nodes, *each.feeding)}
    made = {operator.y for operator in operators}
    return frozenset(
        name for name in made if name not in graph.outputs and set(graph.users(name)) <= inside
    )


def chains(graph: Graph, operators: Sequence[Operator]) -> list[list[Operator]]:
    """Group the operators that could pass images to each other.

    Float operators pass them in planes. Quantised ones use the same layout as the file, but ONNX
    Runtime's own operators transpose images at both ends of a chain.

    Args:
        graph: The graph of the operators.
        operators: All that could be computed by sparse operators.
    Returns:
        Groups in the graph's order; each operator is in one.
    """
    quantised = [o for o in operators if o.window and not o.takes_planes]
    shared = _could_be(graph, operators) | _internal_values(graph, quantised)
    group = {operator.y: {operator} for operator in operators}
    for operator in operators:
        for name in (operator.x, operator.residual):
            if name in shared and group[name] is not group[operator.y]:
                merged = group[name] | group[operator.y]
                for member in merged:
                    group[member.y] = merged
    order = {operator.y: position for position, operator in enumerate(operators)}
    unique = {id(members): members for members in group.values()}
    return [sorted(members, key=lambda member: order[member.y]) for members in unique.values()]
