"""Gelu, as one node or as the arithmetic nodes that exporters write for it.

    erf:  z/2 · (1 + erf(z / √2))
    tanh: z/2 · (1 + tanh(√(2/π) · (z + 0.044715 z³)))

Exporters order these factors in many ways, so a formula is recognised by its values: elementwise
nodes that read only z and constants are evaluated at some points.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import erf

from mfac_compress.export.sparse.graph import Graph, attributes
from mfac_compress.export.sparse.operator import SparseOperator

_MAX_NODES = 12
# The two forms differ by at least 1e-4 at several of these points; rounding constants to float32
# changes values by 1e-6.
_POINTS = np.array([-7.0, -3.0, -1.7, -0.6, -0.1, 0.0, 0.3, 0.9, 2.2, 2.8, 5.0, 9.0])
_TOLERANCE = 1e-5
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Erf": erf,
    "Tanh": np.tanh,
}
_FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda z: z / 2 * (1 + erf(z / np.sqrt(2))),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
}


def add_gelu(graph: Graph, operator: SparseOperator) -> SparseOperator | None:
    """Return the operator with the Gelu after it; None if there is none."""
    if not operator.can_fuse or operator.y in graph.outputs:
        return None
    position = graph.only_user(operator.y)
    if graph.is_operator(position, "Gelu"):
        node = graph.nodes[position]
        plain = attributes(node).get("approximate", b"none") == b"none"
        nodes, y = (*operator.nodes, position), node.output[0]
        return replace(operator, nodes=nodes, y=y, activation="gelu" if plain else "gelu_tanh")
    found = _formula(graph, operator.y)
    if found is None:
        return None
    nodes, y, form = found
    return replace(operator, nodes=(*operator.nodes, *nodes), y=y, activation=form)


def _formula(graph: Graph, z: str) -> tuple[list[int], str, str] | None:
    """Return the nodes that compute a Gelu of z, the name of its output, and its form."""
    values, nodes = {z: _POINTS}, []
    while len(nodes) < _MAX_NODES:
        position = _next(graph, values, nodes)
        if position is None:
            return None
        node = graph.nodes[position]
        arguments = [_argument(graph, values, name) for name in node.input]
        with np.errstate(all="ignore"):  # other formulas may overflow
            values[node.output[0]] = _ELEMENTWISE[node.op_type](*arguments)
        nodes.append(position)
        if _is_closed(graph, set(values) - {node.output[0]}, nodes):
            for form, compute in _FORMS.items():
                if np.allclose(values[node.output[0]], compute(_POINTS), 0, _TOLERANCE):
                    return nodes, node.output[0], form
    return None


def _next(graph: Graph, values: dict[str, np.ndarray], nodes: list[int]) -> int | None:
    """Return the first node that computes a new value from these values."""
    users = {position for name in values for position in graph.users(name)} - set(nodes)
    for position in sorted(users):
        arguments = [_argument(graph, values, name) for name in graph.nodes[position].input]
        if graph.is_operator(position, *_ELEMENTWISE) and all(a is not None for a in arguments):
            return position
    return None


def _argument(graph: Graph, values: dict[str, np.ndarray], name: str) -> np.ndarray | float | None:
    return values[name] if name in values else graph.scalar(name)


def _is_closed(graph: Graph, inner: set[str], nodes: list[int]) -> bool:
    """Whether only these nodes read these values."""
    return all(name not in graph.outputs and set(graph.users(name)) <= set(nodes) for name in inner)
