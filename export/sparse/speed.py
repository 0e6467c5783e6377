"""The speed of an ONNX file with sparse operators: what of it they compute, and what that gives."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import onnx

from mfac_compress.export.latency import LatencyComparison, Setting
from mfac_compress.export.session import open_session
from mfac_compress.export.sparse.choose import Choice, Watch, choose
from mfac_compress.export.sparse.compose import inline_functions, name_nodes, sort_nodes
from mfac_compress.export.sparse.difference import largest_difference, most_difference
from mfac_compress.export.sparse.files import read_model
from mfac_compress.export.sparse.find import Layer, find_layers, fuse
from mfac_compress.export.sparse.graph import Graph, is_open, needed_inputs
from mfac_compress.export.sparse.layer_speed import LayerSpeed, layer_speeds
from mfac_compress.export.sparse.library import kernel_library
from mfac_compress.export.sparse.measure import SettingTime
from mfac_compress.export.sparse.operator import Refusal
from mfac_compress.export.sparse.patterns.other_quantised import why_not
from mfac_compress.export.sparse.probe import Feeds, shapes_of
from mfac_compress.export.sparse.whole import best_whole

_SHAPED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Slice", "DequantizeLinear")


@dataclass(frozen=True)
class FileSpeed:
    """What sparse operators give a file.

    Attributes:
        layers: In the graph's order.
        whole: Of the model with sparse operators, or of the best that was tried; else empty.
        model: With sparse operators, the fastest that was found; None where none was faster.
        reason: Why there is no model; empty where there is one.
        difference: Of the outputs with and without sparse operators, as a share of the largest.
            None where there are none to compare.
        compared: The whole against the file, at each setting, as :func:`confirm` measures it; else
            empty.
    """

    layers: tuple[LayerSpeed, ...]
    whole: tuple[SettingTime, ...]
    model: onnx.ModelProto | None
    reason: str
    difference: float | None
    compared: tuple[LatencyComparison, ...] = ()


def measure_speed(
    path: str | os.PathLike[str],
    feeds_of: Callable[[int], Feeds],
    settings: Sequence[Setting],
    *,
    kernels: bool = True,
    timeout: float | None = None,
    watch: Watch = lambda *_: None,
) -> FileSpeed:
    """Find the layers of a file that run faster as sparse operators.

    What is found is a candidate: among many, the fastest may be so by luck. Whether it is faster is
    for :func:`confirm` to say, or for another comparison of the whole files.

    Args:
        path: ONNX file without sparse operators.
        feeds_of: Batch size -> the model's inputs.
        settings: Batch sizes and threads. A layer is replaced only if that is faster at all.
        kernels: Otherwise nothing is timed or replaced, and the kernels need not be built.
        timeout: Seconds in which a call that only asks for shapes must end; None: no limit.
        watch: Told what is timed next: its name, how many layers were timed, of how many.
    Returns:
        The layers, with times of those that could be replaced, and the model with sparse operators.
    Raises:
        ValueError: If the file can not be read or run on the inputs, or the kernels are not built.
    """
    model = inline_functions(read_model(path))
    open_session(path)  # what ONNX Runtime can not load is said of this file, not of parts of it
    sort_nodes(model)
    name_nodes(model)
    graph = Graph(model)
    layers = find_layers(graph)
    by_batch = _shapes(graph, feeds_of, settings, timeout)
    operators = fuse(graph, layers, by_batch[max(by_batch)])
    choice = Choice((), {})
    if kernels:
        kernel_library()
        shapes = {setting: by_batch[setting.batch_size] for setting in settings}
        choice = choose(graph, operators, shapes, watch)
    feeds = {setting: feeds_of(setting.batch_size) for setting in settings}
    watch("whole model", len(choice.trials), len(choice.trials))
    whole = best_whole(graph, choice.parts, feeds)
    difference, too_much = None, False
    if whole.model is not None:
        difference = largest_difference(model, whole.model, feeds[settings[0]])
        too_much = difference is not None and difference > most_difference(graph)
        if too_much:
            whole = replace(whole, plan={}, model=None)
    first = by_batch[settings[0].batch_size]
    rows = layer_speeds(graph, layers, operators, choice, whole.plan, first)
    reason = _reason(kernels, layers, choice, whole.plan)
    if too_much:
        reason = f"its outputs differ by {difference:.2g} of the largest"
    return FileSpeed(rows, whole.speeds, whole.model, reason, difference)


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
    if not choice.parts:
        return "no layer is faster as a sparse operator"
    return "" if plan else "the layers that are faster alone do not make the whole model faster"


def _untried(layers: Sequence[Layer]) -> str:
    if not layers:
        return "it has no Conv, Gemm or MatMul"
    if all(isinstance(layer.found, Refusal) for layer in layers):
        return "no layer can be computed by a sparse operator; the table of layers says why"
    return "no layer that a sparse operator could compute has enough zeros"


def _open_batch(graph: onnx.GraphProto) -> bool:
    """Whether any input leaves its first axis open."""
    tensors = [value.type.tensor_type for value in needed_inputs(graph)]
    firsts = [(tensor, tensor.shape.dim[:1]) for tensor in tensors]
    return any(
        is_open(first[0]) if first else not tensor.HasField("shape") for tensor, first in firsts
    )


def _shapes(
    graph: Graph,
    feeds_of: Callable[[int], Feeds],
    settings: Sequence[Setting],
    timeout: float | None,
) -> dict[int, dict[str, tuple[int, ...]]]:
    """By batch size, the shapes of all that layers and what follows them read and make."""
    batches = {setting.batch_size for setting in settings}
    names = {
        name
        for position, node in enumerate(graph.nodes)
        if graph.is_operator(position, *_SHAPED) or why_not(node)
        for name in (*node.input[:2], *node.output)
        if name and graph.constant(name) is None
    }
    shapes = {b: shapes_of(graph.model, names, feeds_of(b), timeout) for b in batches}
    if batches == {1} and _open_batch(graph.model.graph):
        # At 1, a value that is broadcast over the batch looks like any other. A file that does not
        # run at 2, whatever its inputs leave open, has nothing to broadcast over.
        with suppress(ValueError):
            shapes[2] = shapes_of(graph.model, names, feeds_of(2), timeout)
    return shapes
