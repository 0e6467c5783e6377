"""Write graphs in which sparse operators replace the nodes that they can compute."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

import onnx
import onnx.inliner
from onnx import TensorProto, helper

from mfac_compress.export.sparse.find import Operator
from mfac_compress.export.sparse.graph import (
    FIRST_WITH_DEFAULTS,
    Graph,
    needed_inputs,
    value_names,
    values_read,
)
from mfac_compress.export.sparse.layout import Plan, in_planes
from mfac_compress.export.sparse.nodes import DOMAIN, VERSION, SparseNode


class _Composed(NamedTuple):
    nodes: list[onnx.NodeProto]
    initializers: list[TensorProto]
    by_content: dict[bytes, str]
    """Names of the initializers by a hash of their content."""


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of the main graph a unique name.

    Args:
        model: Changed in place.
    """
    known: set[str] = set()
    for position, node in enumerate(model.graph.node):
        if not node.name or node.name in known:
            node.name = f"{node.op_type}_{position}"
            while node.name in known:
                node.name += "_"
        known.add(node.name)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline functions where they are called, as ONNX Runtime does when it loads a file.

    Args:
        model: May be changed. Its functions must not be too large when inlined.
    Returns:
        The model; unchanged if it has no functions, or is too large for the ONNX inliner.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception:  # its layers are reported as inside functions, then
        return model


def sort_nodes(model: onnx.ModelProto) -> None:
    """Sort the nodes of the main graph topologically.

    ONNX requires that, but ONNX Runtime also loads and sorts files in another order.

    Args:
        model: Changed in place, if it is not sorted. ONNX Runtime must be able to load it.
    """
    nodes = list(model.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    before = {
        place: [makers[name] for name in values_read(node) if name in makers]
        for place, node in enumerate(nodes)
    }
    if any(maker >= place for place, makers in before.items() for maker in makers):
        order = TopologicalSorter(before).static_order()
        ordered = [onnx.NodeProto.FromString(nodes[place].SerializeToString()) for place in order]
        del model.graph.node[:]
        model.graph.node.extend(ordered)


def rewrite(graph: Graph, plan: Plan) -> onnx.ModelProto:
    """Return the model with sparse operators in place of the operators of a plan.

    Args:
        graph: The graph of the model, which is not changed.
        plan: Not empty.
    Returns:
        A valid model that imports the domain of the sparse operators.
    """
    composed = _compose(graph, range(len(graph.nodes)), plan)
    model = onnx.ModelProto()
    model.CopyFrom(_without_graph(graph.model))
    source = graph.model.graph
    model.graph.name = source.name
    old = graph.model.ir_version < FIRST_WITH_DEFAULTS
    model.graph.input.extend(needed_inputs(source) if old else source.input)
    model.graph.output.extend(source.output)
    nodes = _live_nodes(composed.nodes, graph.outputs)
    read = {name for node in nodes for name in values_read(node)} | graph.outputs
    model.graph.node.extend(nodes)
    notes = [note for note in source.quantization_annotation if note.tensor_name in read]
    scales = {entry.value for note in notes for entry in note.quant_parameter_tensor_names}
    model.graph.quantization_annotation.extend(notes)
    kept = {value.name for value in model.graph.input} | read | scales
    tensors = [*source.initializer, *composed.initializers]
    model.graph.initializer.extend(tensor for tensor in tensors if tensor.name in kept)
    sparse = source.sparse_initializer
    model.graph.sparse_initializer.extend(each for each in sparse if each.values.name in kept)
    # The recorded shape of a value in planes is no longer true.
    noted = {name for node in nodes for name in node.output} - in_planes(graph, plan)
    model.graph.value_info.extend(info for info in source.value_info if info.name in noted)
    _import_domain(model)
    return model


def extract_subgraph(
    graph: Graph,
    operators: Sequence[Operator],
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> onnx.ModelProto:
    """Extract some operators into a model, to be timed.

    Args:
        graph: The graph of the operators.
        operators: The operators to extract. Those that are not in the plan are not replaced.
        plan: As for :func:`rewrite`; may be empty.
        shapes: Shapes of the model's inputs.
    """
    inside = {position for each in operators for position in (*each.nodes, *each.feeding)}
    composed = _compose(graph, sorted(inside), plan)
    returned = [
        operator
        for operator in operators
        if operator.y in graph.outputs or not set(graph.users(operator.y)) <= inside
    ]
    nodes = _live_nodes(composed.nodes, [operator.y for operator in returned])
    types = {operator.x: operator.element_type for operator in operators}
    constants = {tensor.name: tensor for tensor in composed.initializers}
    made = {name for node in nodes for name in node.output}
    inputs = []
    for name in dict.fromkeys(name for node in nodes for name in node.input if name):
        if name in made or name in constants:
            continue
        array = graph.constant(name)
        if array is not None:
            constants[name] = onnx.numpy_helper.from_array(array, name)
        else:
            kind = types.get(name, TensorProto.FLOAT)
            inputs.append(helper.make_tensor_value_info(name, kind, shapes[name]))
    outputs = [helper.make_tensor_value_info(o.y, o.element_type, None) for o in returned]
    model = onnx.ModelProto()
    model.CopyFrom(_without_graph(graph.model))
    model.graph.CopyFrom(
        helper.make_graph(nodes, "subgraph", inputs, outputs, list(constants.values()))
    )
    if plan:
        _import_domain(model)
    return model


def _compose(graph: Graph, positions: Iterable[int], plan: Plan) -> _Composed:
    """Return the nodes at these positions, with each operator in place of its last node."""
    planes = in_planes(graph, plan)
    ends = {operator.nodes[-1]: operator for operator in plan}
    covered = {position for operator in plan for position in operator.nodes}
    taken = value_names(graph.model.graph)
    composed = _Composed([], [], {})
    for position in positions:
        operator = ends.get(position)
        if operator is not None:
            _add(composed, operator.build(plan[operator].block, planes), taken)
        elif position not in covered:
            composed.nodes.append(graph.nodes[position])
    return composed


def _add(composed: _Composed, built: SparseNode, taken: set[str]) -> None:
    """Add a node; its initializers get unused names, and equal ones are stored once."""
    names = {}
    for tensor in built.initializers:
        original, tensor.name = tensor.name, ""
        content = hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()
        tensor.name = original
        if content not in composed.by_content:
            while tensor.name in taken:
                tensor.name += "_"
            taken.add(tensor.name)
            composed.initializers.append(tensor)
            composed.by_content[content] = tensor.name
        names[original] = composed.by_content[content]
    for place, read in enumerate(built.node.input):
        built.node.input[place] = names.get(read, read)
    composed.nodes.append(built.node)


def _live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes on which the outputs depend, without those of weights that are packed."""
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if needed & set(node.output):
            live.append(node)
            needed |= set(values_read(node))
    return live[::-1]


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without its graph, whose tensors would be copied.

    In the first versions of the format every initializer has to be listed as an input. From the
    next one on, initializers that are not listed are constants.
    """
    bare = onnx.ModelProto(
        ir_version=max(FIRST_WITH_DEFAULTS, model.ir_version),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )
    bare.opset_import.extend(model.opset_import)
    bare.metadata_props.extend(model.metadata_props)
    bare.functions.extend(model.functions)
    return bare


def _import_domain(model: onnx.ModelProto) -> None:
    if all(imported.domain != DOMAIN for imported in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
