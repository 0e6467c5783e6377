"""The speed of an ONNX file with sparse operators, and the layers that they compute."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from mfac_compress.export.latency import FeedsOf, LatencyComparison
from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.attention import Attention
from mfac_compress.export.sparse.attention_check import exact_attention
from mfac_compress.export.sparse.attention_layouts import find_attention
from mfac_compress.export.sparse.choose import Choice, ProgressCallback, choose
from mfac_compress.export.sparse.compose import name_nodes
from mfac_compress.export.sparse.difference import largest_difference, max_difference
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.find import Layer, find_layers, fuse
from mfac_compress.export.sparse.graph import Graph, is_open, is_operator, needed_inputs
from mfac_compress.export.sparse.layer_speed import LayerSpeed, layer_speeds
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.measure import CandidateError, WorkloadTime
from mfac_compress.export.sparse.operator import Unsupported
from mfac_compress.export.sparse.patterns.other_quantised import unsupported_reason
from mfac_compress.export.sparse.probe import Feeds, shapes_of
from mfac_compress.export.sparse.whole import Whole, fastest_model
from mfac_compress.export.workload import Workload

_SHAPED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Slice", "DequantizeLinear")


@dataclass(frozen=True)
class FileSpeed:
    """The speed of a file with sparse operators.

    Attributes:
        layers: All layers, in the graph's order.
        whole: Times of the model with sparse operators, or of the best that was tried; else empty.
        model: The fastest model with sparse operators; None if none was faster.
        reason: Why there is no model; empty if there is one.
        difference: Difference of the outputs with and without sparse operators, relative to the
            largest. None if there are none to compare.
        compared: Comparison of the model with the file for each workload, by :func:`confirm`; else
            empty.
    """

    layers: tuple[LayerSpeed, ...]
    whole: tuple[WorkloadTime, ...]
    model: ir.Model | None
    reason: str
    difference: float | None
    compared: tuple[LatencyComparison, ...] = ()


def measure_speed(
    path: str | os.PathLike[str],
    feeds_of: FeedsOf,
    workloads: Sequence[Workload],
    *,
    kernels: bool = True,
    timeout: float | None = None,
    progress: ProgressCallback = lambda *_: None,
) -> FileSpeed:
    """Find the layers of a file that run faster as sparse operators.

    The result is a candidate: the fastest of many may be so by chance. :func:`confirm`, or another
    comparison of the whole files, decides whether it is faster.

    Args:
        path: ONNX file without sparse operators.
        feeds_of: The model's inputs for a workload.
        workloads: What is timed. A layer is replaced only if that is faster for all of them.
        kernels: If false, nothing is timed or replaced, and the kernels need not be built.
        timeout: Time limit in seconds of a call that only finds shapes; None for no limit.
        progress: Called with the name of what is timed next, how many layers were timed, and how
            many there are.
    Returns:
        The layers, with times of those that could be replaced, and the model with sparse operators.
    Raises:
        ValueError: If the file cannot be read or run on the inputs, or the kernels are not built.
    """
    model = read_model(path)
    open_session(path)  # so that an error of loading names this file, not a part of it
    model.graph.sort()  # ONNX Runtime also loads files in another order
    name_nodes(model)
    graph = Graph(model)
    layers = find_layers(graph)
    shapes = _shapes(graph, feeds_of, workloads, timeout)
    operators = fuse(graph, layers, shapes[max(shapes, key=_extent)])
    choice, whole, failure = Choice((), {}), Whole({}, None, ()), ""
    feeds = {workload: feeds_of(workload) for workload in workloads}
    if kernels:
        kernel_library()
        timed = {workload: shapes[_on_one_thread(workload)] for workload in workloads}
        try:
            choice = choose(graph, operators, timed, progress)
            progress("whole model", len(choice.trials), len(choice.trials))
            attention = _attention(graph, choice, feeds, timeout)
            whole = fastest_model(graph, choice.segments, feeds, attention)
        except CandidateError as error:
            failure = f"ONNX Runtime could not run it with sparse operators: {error}"
    difference, too_much = None, False
    if whole.model is not None:
        difference = largest_difference(Path(path), whole.model, feeds[workloads[0]])
        too_much = difference is not None and difference > max_difference(graph)
        if too_much:
            whole = replace(whole, plan={}, model=None)
    first = shapes[_on_one_thread(workloads[0])]
    rows = layer_speeds(graph, layers, operators, choice, whole.plan, first)
    reason = failure or _reason(kernels, layers, choice, whole.plan)
    if too_much:
        reason = f"its outputs differ by {difference:.2g} of the largest"
    return FileSpeed(rows, whole.speeds, whole.model, reason, difference)


def _attention(
    graph: Graph, choice: Choice, feeds: Mapping[Workload, Feeds], timeout: float | None
) -> Sequence[Attention]:
    """Return the attention of a graph with sparse layers."""
    if not choice.segments:
        return ()
    smallest = feeds[min(feeds, key=_extent)]  # it is also tried on longer ones
    return exact_attention(graph, find_attention(graph, smallest, timeout), smallest, timeout)


def _reason(
    kernels: bool,
    layers: Sequence[Layer],
    choice: Choice,
    plan: object,
) -> str:
    if not kernels:
        return "nothing was timed"
    if not choice.trials:
        return _untried(layers)
    if not choice.segments:
        return "no layer is faster as a sparse operator"
    return "" if plan else "the layers that are faster alone do not make the whole model faster"


def _untried(layers: Sequence[Layer]) -> str:
    if not layers:
        return "it has no Conv, Gemm or MatMul"
    if all(isinstance(layer.found, Unsupported) for layer in layers):
        return "no layer can be computed by a sparse operator; the table of layers says why"
    return "no layer that a sparse operator could compute has enough zeros"


def _open_batch(model: ir.Model) -> bool:
    """Whether any input leaves its first axis open."""
    shapes = [value.shape for value in needed_inputs(model)]
    return any(shape is None or any(map(is_open, shape[:1])) for shape in shapes)


def _shapes(
    graph: Graph, feeds_of: FeedsOf, workloads: Sequence[Workload], timeout: float | None
) -> dict[Workload, dict[str, tuple[int, ...]]]:
    """Return, for each workload on one thread, the shapes of what layers and fusible nodes use."""
    names = {
        value.name
        for node in graph.nodes
        if is_operator(node, *_SHAPED) or unsupported_reason(node)
        for value in (*node.inputs[:2], *node.outputs)
        if value is not None and value.name and graph.constant(value) is None
    }

    def shapes_for(workload: Workload) -> dict[str, tuple[int, ...]]:
        return shapes_of(graph.model, names, feeds_of(workload), timeout)

    shapes = {each: shapes_for(each) for each in map(_on_one_thread, workloads)}
    # At length 1, a value that is broadcast over an axis looks like any other. A file that does
    # not run at 2, despite its dynamic axes, has nothing to broadcast over.
    largest = max(shapes, key=_extent)
    batch = max(largest.batch_size, 2 if _open_batch(graph.model) else 1)
    lengths = {name: max(2, length) for name, length in largest.lengths.items()}
    longer = replace(largest, batch_size=batch, lengths=lengths)
    if longer not in shapes:
        with suppress(ValueError):
            shapes[longer] = shapes_for(longer)
    return shapes


def _on_one_thread(workload: Workload) -> Workload:
    return replace(workload, threads=1)


def _extent(workload: Workload) -> tuple[int, ...]:
    """Return the lengths of all open axes."""
    return workload.batch_size, *workload.lengths.values()
