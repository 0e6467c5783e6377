"""Which values stay in the kernels' own layout, `planes`.

A value does where a sparse convolution makes it and nothing but sparse convolutions read it, as
their input or as their residual.
"""

from collections.abc import Sequence

from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.operator import SparseOperator


def in_planes(graph: Graph, operators: Sequence[SparseOperator]) -> frozenset[str]:
    """Names of the values that stay in planes.

    Args:
        graph: Where they stand.
        operators: Those that will be computed by sparse operators.
    """
    convolutions = [operator for operator in operators if operator.window]
    inside = {position for operator in convolutions for position in operator.nodes}
    made = {operator.y for operator in convolutions}
    return frozenset(
        name for name in made if name not in graph.outputs and set(graph.users(name)) <= inside
    )


def chains(graph: Graph, operators: Sequence[SparseOperator]) -> list[list[SparseOperator]]:
    """Put together the operators that could hand values to each other in planes.

    Args:
        graph: Where they stand.
        operators: All that could be computed by sparse operators.
    Returns:
        Groups in the graph's order; each operator is in one.
    """
    shared = in_planes(graph, operators)
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
