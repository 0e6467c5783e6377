"""What is said of each layer of a file: sparsity, times, and why it was replaced or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfac_compress.export.sparse.choose import LEAST_SPARSITY, Choice, Trial
from mfac_compress.export.sparse.find import Layer, Operator
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layout import Plan
from mfac_compress.export.sparse.measure import SettingTime
from mfac_compress.export.sparse.multiplications import multiplications
from mfac_compress.export.sparse.operator import Refusal
from mfac_compress.export.sparse.patterns.stored import stored_weight


@dataclass(frozen=True)
class LayerSpeed:
    """A Conv, Gemm or MatMul of a file, or a quantised form of one."""

    name: str
    operator: str
    weight: str | None
    """Name of the tensor. None where it is not constant."""
    shape: tuple[int, ...]
    """Of the weight; empty where it is not constant, or packed."""
    sparsity: float | None
    """Share of the weights that are zero. None where they are not constant, or packed."""
    macs: int | None
    """Multiplications of the dense layer in one call, at the first setting. None: in a subgraph,
    of two constants, or with a weight of which nothing is known."""
    kept_macs: int | None
    """Of these, those with weights that are not zero."""
    block: int | None
    """Outputs that share their inputs; of a quantised layer 4, the inputs of one output that lie
    together. None: ONNX Runtime computes the layer."""
    times: tuple[SettingTime, ...]
    """The layer on its own, with what is fused behind it. Empty where it was not timed."""
    reason: str
    """Why it was replaced, or not."""


def layer_speeds(
    graph: Graph,
    layers: Sequence[Layer],
    operators: Sequence[Operator],
    choice: Choice,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[LayerSpeed, ...]:
    """Describe the layers of a graph.

    Args:
        graph: Where they stand.
        layers: All of them.
        operators: Those that could stand for layers, named as these.
        choice: What came of timing them one by one.
        plan: What is replaced in the end.
        shapes: Of the layers' inputs and outputs.
    """
    by_name = {operator.name: operator for operator in operators}
    return tuple(
        _describe(graph, layer, by_name.get(layer.node.name), choice, plan, shapes)
        if layer.position is not None
        else LayerSpeed(
            layer.node.name, layer.node.op_type, None, (), None, None, None, None, (),
            layer.found.reason,
        )
        for layer in layers
    )  # fmt: skip


def _describe(
    graph: Graph,
    layer: Layer,
    operator: Operator | None,
    choice: Choice,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> LayerSpeed:
    node = layer.node
    stored = stored_weight(graph, node)
    weight = stored.array if stored and stored.array is not None else np.empty(0)
    known = weight.size > 0
    trial = choice.trials.get(operator)
    macs, kept_macs = multiplications(graph, layer, shapes) or (None, None)
    return LayerSpeed(
        name=node.name,
        operator=node.op_type,
        weight=stored.name if stored else None,
        shape=weight.shape if known else (),
        sparsity=1 - np.count_nonzero(weight) / weight.size if known else None,
        macs=macs,
        kept_macs=kept_macs,
        block=plan[operator].block if operator in plan else None,
        times=trial.times if trial else (),
        reason=_reason(layer, operator, trial, choice, plan),
    )


def _reason(
    layer: Layer,
    operator: Operator | None,
    trial: Trial | None,
    choice: Choice,
    plan: Plan,
) -> str:
    if isinstance(layer.found, Refusal):
        return layer.found.reason
    few = operator.sparsity < LEAST_SPARSITY
    alone = trial is not None and trial.pays
    reasons = {
        "faster": operator in plan and alone,
        "saves changes of layout around it": operator in plan,
        "faster on its own, but not in the whole model": operator in choice.plan and alone,
        f"fewer than {LEAST_SPARSITY:.0%} of its weights are zero": few,
        "not timed": trial is None,
        "faster on its own, but not with the layers around it": alone,
    }
    return next((reason for reason, holds in reasons.items() if holds), "not faster")
