"""Gelu, as one node or as the arithmetic nodes that exporters write for it.

    erf:  z/2 · (1 + erf(z / √2))
    tanh: z/2 · (1 + tanh(√(2/π) · (z + 0.044715 z³)))

Exporters order these factors in many ways, so a formula is recognised by its values: elementwise
nodes that read only z and constants are evaluated at some points.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from scipy.special import erf

from mfac_compress.export.sparse.graph import Graph, attributes, is_operator, only_user, users
from mfac_compress.export.sparse.nodes import Activation
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
    node = only_user(operator.y)
    if is_operator(node, "Gelu"):
        plain = attributes(node).get("approximate", "none") == "none"
        nodes, form = [node], "gelu" if plain else "gelu_tanh"
    else:
        nodes, form = _formula(graph, operator.y)
    if not nodes or operator.y.is_graph_output():
        return None
    return operator.activated(nodes, Activation(form))


def _formula(graph: Graph, z: ir.Value) -> tuple[list[ir.Node], str]:
    """Return the nodes that compute a Gelu of z, and its form; no nodes if there is none."""
    values, nodes = {z: _POINTS}, []
    while len(nodes) < _MAX_NODES:
        node = _next(graph, values, nodes)
        if node is None:
            break
        arguments = [_argument(graph, values, value) for value in node.inputs]
        with np.errstate(all="ignore"):  # other formulas may overflow
            found = _ELEMENTWISE[node.op_type](*arguments)
        nodes.append(node)
        if _is_closed(values, nodes):
            for form, compute in _FORMS.items():
                if np.allclose(found, compute(_POINTS), 0, _TOLERANCE):
                    return nodes, form
        values[node.outputs[0]] = found
    return [], ""


def _next(
    graph: Graph, values: Mapping[ir.Value, np.ndarray], nodes: Sequence[ir.Node]
) -> ir.Node | None:
    """Return the first node that computes a new value from these values."""
    readers = {node for value in values for node in users(value)} & graph.position.keys()
    for node in sorted(readers - set(nodes), key=graph.position.__getitem__):
        arguments = [_argument(graph, values, value) for value in node.inputs]
        if is_operator(node, *_ELEMENTWISE) and all(a is not None for a in arguments):
            return node
    return None


def _argument(
    graph: Graph, values: Mapping[ir.Value, np.ndarray], value: ir.Value | None
) -> np.ndarray | float | None:
    return values[value] if value in values else graph.scalar(value)


def _is_closed(inner: Iterable[ir.Value], nodes: Sequence[ir.Node]) -> bool:
    """Whether only these nodes read these values."""
    return all(not value.is_graph_output() and users(value) <= set(nodes) for value in inner)
