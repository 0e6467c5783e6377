"""Which values stay in the kernels' own layout, `planes`.

A value does where a sparse convolution makes it and nothing but sparse convolutions read it, as
their input or as their residual.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mfac_compress.export.sparse.find import Operator
from mfac_compress.export.sparse.graph import Graph


class Placement(NamedTuple):
    """How an operator is computed.

    Attributes:
        block: Outputs that share their inputs, or inputs of a quantised layer.
        planes: Whether its output stays in planes where that is possible.
    """

    block: int
    planes: bool = True


Plan = Mapping[Operator, Placement]
"""The operators to be computed by the kernels."""


def in_planes(graph: Graph, plan: Plan) -> frozenset[str]:
    """Names of the values that stay in planes.

    Args:
        graph: Where they stand.
        plan: All that will be computed by sparse operators.
    """
    wanted = {operator.y for operator, placement in plan.items() if placement.planes}
    return wanted & _could_be(graph, plan)


KINDS = ("all", "windowed", "none")
"""Which values are in planes: all that can be; those that a window larger than one pixel reads,
which is what the layout is for (its border makes every image larger); none."""


def placed(graph: Graph, blocks: Mapping[Operator, int], kind: str) -> Plan:
    """The plan with these operators and block sizes, and one of the ``KINDS`` of layout."""
    wanted = _could_be(graph, blocks) if kind != "none" else frozenset()
    if kind == "windowed":
        wanted &= {o.x for o in blocks if o.takes_planes and max(o.weight.shape[2:]) > 1}
    return {operator: Placement(block, operator.y in wanted) for operator, block in blocks.items()}


def _could_be(graph: Graph, operators: Collection[Operator]) -> frozenset[str]:
    return _handed_on(graph, [operator for operator in operators if operator.takes_planes])


def _handed_on(graph: Graph, operators: Collection[Operator]) -> frozenset[str]:
    """Values that one of the operators makes, and nothing but others of them reads."""
    inside = {position for each in operators for position in (*each.nodes, *each.feeding)}
    made = {operator.y for operator in operators}
    return frozenset(
        name for name in made if name not in graph.outputs and set(graph.users(name)) <= inside
    )


def chains(graph: Graph, operators: Sequence[Operator]) -> list[list[Operator]]:
    """Put together the operators that could hand images to each other.

    Float ones do it in planes. Quantised ones do it as everywhere, but ONNX Runtime's own turn
    images round at both ends of a chain.

    Args:
        graph: Where they stand.
        operators: All that could be computed by sparse operators.
    Returns:
        Groups in the graph's order; each operator is in one.
    """
    quantised = [o for o in operators if o.window and not o.takes_planes]
    shared = _could_be(graph, operators) | _handed_on(graph, quantised)
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
