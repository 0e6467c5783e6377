"""The description of each layer of a file: sparsity, times, and why it was replaced or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfac_compress.export.sparse.choose import MIN_SPARSITY, Choice, Trial
from mfac_compress.export.sparse.find import Layer
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Plan
from mfac_compress.export.sparse.macs import count_macs
from mfac_compress.export.sparse.measure import WorkloadTime
from mfac_compress.export.sparse.operator import SparseOperator, Unsupported
from mfac_compress.export.sparse.patterns.stored import stored_weight


@dataclass(frozen=True)
class LayerSpeed:
    """A Conv, Gemm or MatMul of a file, or a quantised form of one."""

    name: str
    """Name of the layer's node."""
    operator: str
    """Its ONNX operator."""
    weight: str | None
    """Name of the tensor. None if it is not constant."""
    shape: tuple[int, ...]
    """Shape of the weight; empty if it is not constant, or packed."""
    sparsity: float | None
    """Share of the weights that are zero. None if they are not constant, or packed."""
    macs: int | None
    """Multiply-accumulates of the dense layer in one call, for the first workload. None if it is
    in a subgraph, a product of two constants, or its weight is not known."""
    kept_macs: int | None
    """How many of these are with nonzero weights."""
    block: int | None
    """Weights that are stored together: of outputs that share an input; of a quantised layer that
    was pruned in blocks of inputs, of inputs. None: ONNX Runtime computes the layer."""
    times: tuple[WorkloadTime, ...]
    """Times of the layer on its own, with the nodes fused into it. Empty if it was not timed."""
    reason: str
    """Why it was replaced, or not."""


def layer_speeds(
    graph: Graph,
    layers: Sequence[Layer],
    operators: Sequence[SparseOperator],
    choice: Choice,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[LayerSpeed, ...]:
    """Describe the layers of a graph.

    Args:
        graph: The graph of the layers.
        layers: All layers.
        operators: The operators that could replace layers, with the names of these.
        choice: The result of timing them one by one.
        plan: The operators that are replaced in the end.
        shapes: Shapes of the layers' inputs and outputs.
    """
    by_name = {operator.name: operator for operator in operators}
    return tuple(
        _describe(graph, layer, by_name.get(layer.node.name), choice, plan, shapes)
        if not layer.is_inner
        else LayerSpeed(
            layer.node.name, layer.node.op_type, None, (), None, None, None, None, (),
            layer.found.reason,
        )
        for layer in layers
    )  # fmt: skip


def _describe(
    graph: Graph,
    layer: Layer,
    operator: SparseOperator | None,
    choice: Choice,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> LayerSpeed:
    node = layer.node
    stored = stored_weight(graph, node)
    weight = stored.array if stored and stored.array is not None else np.empty(0)
    known = weight.size > 0
    trial = choice.trials.get(operator)
    macs, kept_macs = count_macs(graph, layer, shapes) or (None, None)
    return LayerSpeed(
        name=node.name,
        operator=node.op_type,
        weight=stored.name if stored else None,
        shape=weight.shape if known else (),
        sparsity=1 - np.count_nonzero(weight) / weight.size if known else None,
        macs=macs,
        kept_macs=kept_macs,
        block=plan[operator].block.size if operator in plan else None,
        times=trial.times if trial else (),
        reason=_reason(layer, operator, trial, choice, plan),
    )


def _reason(
    layer: Layer,
    operator: SparseOperator | None,
    trial: Trial | None,
    choice: Choice,
    plan: Plan,
) -> str:
    if isinstance(layer.found, Unsupported):
        return layer.found.reason
    few = operator.sparsity < MIN_SPARSITY
    alone = trial is not None and trial.is_faster
    reasons = {
        "faster": operator in plan and alone,
        "saves layout conversions around it": operator in plan,
        "faster on its own, but not in the whole model": operator in choice.plan and alone,
        f"fewer than {MIN_SPARSITY:.0%} of its weights are zero": few,
        "not timed": trial is None,
        "faster on its own, but not with the layers around it": alone,
    }
    return next((reason for reason, holds in reasons.items() if holds), "not faster")
