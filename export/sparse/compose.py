"""Write graphs in which sparse operators stand for what they can compute."""

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
    """Names of the initializers by what they hold."""


def name_nodes(model: onnx.ModelProto) -> None:
    """Give a name of its own to every node of the main graph that has none.

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
    """Write functions out where they are called, as ONNX Runtime does when it loads a file.

    Args:
        model: May be changed. Not larger then than what can be run.
    Returns:
        The model; as it was where it has no functions, or is too large for the ONNX inliner.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception:  # the layers are said to be inside functions, then
        return model


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of the main graph in an order in which each reads what was made before.

    ONNX asks for that, and ONNX Runtime sorts what comes in any other.

    Args:
        model: Changed in place, if it is not sorted. ONNX Runtime can load it.
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
    """The model with sparse operators in place of what the plan names.

    Args:
        graph: Of the model, which stays as it is.
        plan: Not empty.
    Returns:
        A valid model, with the domain of the sparse operators among its imports.
    """
    composed = _compose(graph, range(len(graph.nodes)), plan)
    model = onnx.ModelProto()
    model.CopyFrom(_without_graph(graph.model))
    source = graph.model.graph
    model.graph.name = source.name
    old = graph.model.ir_version < FIRST_WITH_DEFAULTS
    model.graph.input.extend(needed_inputs(source) if old else source.input)
    model.graph.output.extend(source.output)
    nodes = _living(composed.nodes, graph.outputs)
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
    # A value in planes has another shape than the one noted.
    noted = {name for node in nodes for name in node.output} - in_planes(graph, plan)
    model.graph.value_info.extend(info for info in source.value_info if info.name in noted)
    _import_domain(model)
    return model


def piece(
    graph: Graph,
    operators: Sequence[Operator],
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> onnx.ModelProto:
    """A model of its own of some operators, to be timed.

    Args:
        graph: Where they stand.
        operators: Of which it is made. Those that are not in the plan stay as they are.
        plan: As for :func:`rewrite`; may be empty.
        shapes: Of the values that come from outside.
    """
    inside = {position for each in operators for position in (*each.nodes, *each.feeding)}
    composed = _compose(graph, sorted(inside), plan)
    returned = [
        operator
        for operator in operators
        if operator.y in graph.outputs or not set(graph.users(operator.y)) <= inside
    ]
    nodes = _living(composed.nodes, [operator.y for operator in returned])
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
        helper.make_graph(nodes, "piece", inputs, outputs, list(constants.values()))
    )
    if plan:
        _import_domain(model)
    return model


def _compose(graph: Graph, positions: Iterable[int], plan: Plan) -> _Composed:
    """The nodes at these positions, with an operator's node at the place of its last one."""
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
    """Add a node; its initializers get names that are free, and equal ones are kept once."""
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


def _living(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes on which the outputs depend: a Transpose of a packed weight does not stay."""
    needed = set(outputs)
    living = []
    for node in reversed(nodes):
        if needed & set(node.output):
            living.append(node)
            needed |= set(values_read(node))
    return living[::-1]


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything of a model but its graph, whose tensors would be copied.

    In the first versions of the format every initializer is listed as an input, also those that
    come with sparse operators: what was a constant there stays one in the next, unlisted.
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
