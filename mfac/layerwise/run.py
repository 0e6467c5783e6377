"""Run operators of a program, and let go of each value after its last use."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.tracing import Program


def run(
    program: Program,
    nodes: Sequence[Node],
    tensors: Mapping[str, Tensor],
    values: Mapping[Node, Any],
    keep: Collection[Node] | None = None,
) -> dict[Node, Any]:
    """Run operators in order.

    Args:
        program: Has the operators.
        nodes: The operators.
        tensors: Parameters and buffers by name.
        values: Those of the nodes that the operators need and that are not among them.
        keep: Nodes whose values are wanted; None for the model's outputs.

    Returns:
        The values that are wanted.
    """
    wanted = {*(program.outputs if keep is None else keep)}
    release = last_uses(nodes, wanted)
    values = dict(values)
    for node in nodes:
        values[node] = program.value(node, tensors, values)
        for used in release[node]:
            values.pop(used, None)
    return {
        node: values[node] if node in values else tensors[program.tensors[node]] for node in wanted
    }


def last_uses(nodes: Sequence[Node], wanted: Collection[Node]) -> dict[Node, list[Node]]:
    """For each operator the values that are not needed any more once it has run.

    Args:
        nodes: The operators in order.
        wanted: Values that are kept.
    """
    last: dict[Node, Node] = {}
    for node in nodes:
        last[node] = node
        last.update(dict.fromkeys(node.all_input_nodes, node))
    release: dict[Node, list[Node]] = {node: [] for node in nodes}
    for value, node in last.items():
        if value not in wanted:
            release[node].append(value)
    return release
