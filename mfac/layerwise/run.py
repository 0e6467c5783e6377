"""Run operators of a program, and free each value after its last use."""

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
    folds: Mapping[Node, Node] | None = None,
) -> dict[Node, Any]:
    """Run operators in order.

    Args:
        program: Has the operators.
        nodes: The operators.
        tensors: Parameters and buffers by name.
        values: Those of the nodes that the operators need and that are not among them.
        keep: Nodes whose values are wanted; None for the model's outputs.
        folds: Batch norm to the convolution before it: both are run as one convolution.

    Returns:
        The values that are wanted.
    """
    wanted = {*(program.outputs if keep is None else keep)}
    folds = {norm: conv for norm, conv in (folds or {}).items() if conv not in wanted}
    folded = {*folds.values()}
    nodes = [node for node in nodes if node not in folded]
    release = last_uses(nodes, wanted, folds)
    values = dict(values)
    for node in nodes:
        if node in folds:
            values[node] = _normalised_convolution(program, folds[node], node, tensors, values)
        else:
            values[node] = program.value(node, tensors, values)
        for used in release[node]:
            values.pop(used, None)
    return {node: program.of(node, tensors, values) for node in wanted}


def last_uses(
    nodes: Sequence[Node], wanted: Collection[Node], folds: Mapping[Node, Node] | None = None
) -> dict[Node, list[Node]]:
    """For each operator the values that are not needed any more once it has run.

    Args:
        nodes: The operators in order.
        wanted: Values that are kept.
        folds: Node to another one that is run together with it.
    """
    last: dict[Node, Node] = {}
    for node in nodes:
        last[node] = node
        for part in (node, (folds or {}).get(node)):
            last.update(dict.fromkeys(part.all_input_nodes if part else (), node))
    release: dict[Node, list[Node]] = {node: [] for node in nodes}
    for value, node in last.items():
        if value not in wanted:
            release[node].append(value)
    return release


def _normalised_convolution(
    program: Program,
    conv: Node,
    norm: Node,
    tensors: Mapping[str, Tensor],
    values: Mapping[Node, Any],
) -> Tensor:
    """A convolution and the batch norm in evaluation mode behind it, as one convolution."""

    def of(node: Node | None) -> Any:
        return None if node is None else program.of(node, tensors, values)

    _, mean, var, gamma, beta, *_, eps = norm.args
    x, weight, bias, *rest = (*conv.args, None)[: max(3, len(conv.args))]
    scale = (of(var) + eps).rsqrt()
    if gamma is not None:
        scale = scale * of(gamma)
    shift = -of(mean) if bias is None else of(bias) - of(mean)
    shift = shift * scale
    if beta is not None:
        shift = shift + of(beta)
    scaled = of(weight) * scale.view(-1, *[1] * (of(weight).ndim - 1))
    return conv.target(of(x), scaled, shift, *rest, **conv.kwargs)
