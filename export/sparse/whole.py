"""Time whole models with sparse operators: layers faster alone need not be faster together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import onnx_ir as ir

from mfac_compress.export.sparse.attention import Attention, replace_attention
from mfac_compress.export.sparse.choose import MAX_RATIO, Segment, merge
from mfac_compress.export.sparse.compose import rewrite
from mfac_compress.export.sparse.graph import Graph
from mfac_compress.export.sparse.layer_norm import use_layer_norm
from mfac_compress.export.sparse.layout import Plan
from mfac_compress.export.sparse.measure import WorkloadTime, time_models
from mfac_compress.export.sparse.probe import Feeds
from mfac_compress.export.sparse.skip_layer_norm import prevent_skip_layer_norm
from mfac_compress.export.sparse.stacked_projections import stack_projections
from mfac_compress.export.workload import Workload

_ROUNDS = 11


@dataclass(frozen=True)
class Whole:
    """A model with sparse operators, and its times.

    Attributes:
        plan: The operators replaced; empty if no model is faster for every workload.
        model: None if the plan is empty.
        speeds: Times of the model, or of the best that was tried.
    """

    plan: Plan
    model: ir.Model | None
    speeds: tuple[WorkloadTime, ...]


def fastest_model(
    graph: Graph,
    segments: Sequence[Segment],
    feeds: Mapping[Workload, Feeds],
    attention: Sequence[Attention] = (),
) -> Whole:
    """Write and time the model with all segments, then with half of them while that is faster.

    On its own, a segment is timed against ONNX Runtime with layout conversions at its ends, which
    the whole model may not have there: the segments that gain least can cost more than they gain.

    Args:
        graph: The graph of the dense model.
        segments: Segments that are faster on their own, the fastest first; may be empty.
        feeds: The model's inputs for each workload.
        attention: Attention in the graph, which may become an operator if any layer does.
    """
    best = Whole({}, None, ())
    count = len(segments)
    while count:
        found = _fastest(graph, merge(segments[:count]), feeds, attention)
        if best.speeds and _mean(found.speeds) >= _mean(best.speeds):
            break
        best, count = found, count // 2
    worst = max((speed.ratio for speed in best.speeds), default=MAX_RATIO)
    return best if worst <= MAX_RATIO else Whole({}, None, best.speeds)


def _fastest(
    graph: Graph,
    plan: Plan,
    feeds: Mapping[Workload, Feeds],
    attention: Sequence[Attention],
) -> Whole:
    """Return the fastest of the models that implement a plan."""
    models = list(_forms(graph, plan, attention))
    times = [_time([graph.model, *models], workload, feeds[workload]) for workload in feeds]
    by_model = list(zip(*times, strict=True))
    best = min(range(len(models)), key=lambda place: _mean(by_model[place]))
    return Whole(plan, models[best], by_model[best])


def _mean(speeds: Sequence[WorkloadTime]) -> float:
    return fmean(speed.ratio for speed in speeds)


def _forms(graph: Graph, plan: Plan, attention: Sequence[Attention]) -> Iterator[ir.Model]:
    """Yield the models that implement a plan: with ONNX Runtime's layer norms, fused and not, and
    with layer norms and attention of the library, whose projections are stacked."""
    model = rewrite(graph, plan)
    apart, ours = model.clone(), model.clone()
    yield model
    if prevent_skip_layer_norm(apart):
        yield apart
    if replace_attention(ours, attention) + use_layer_norm(ours):
        prevent_skip_layer_norm(ours)
        stack_projections(ours)
        yield ours


def _time(models: Sequence[ir.Model], workload: Workload, feeds: Feeds) -> list[WorkloadTime]:
    """Time all models except the first against the first."""
    dense, *others = time_models(models, feeds, threads=workload.threads, rounds=_ROUNDS)
    return [WorkloadTime.of_rounds(workload, dense, times) for times in others]
