"""Write graphs in which sparse operators replace the nodes that they can compute."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

import onnx_ir as ir

from mfac_compress.export.sparse.graph import FIRST_WITH_DEFAULTS, Graph, needed_inputs, users
from mfac_compress.export.sparse.layout import Plan, in_planes
from mfac_compress.export.sparse.nodes import DOMAIN, VERSION, recorded_planes_shape
from mfac_compress.export.sparse.operator import SparseOperator

_ANNOTATION = "quant_parameter_tensor_names"
"""Where onnx_ir keeps the names of the tensors in a value's quantization annotation."""


def name_nodes(model: ir.Model) -> None:
    """Give every node of the main graph a unique name.

    Args:
        model: Changed in place.
    """
    known: set[str] = set()
    for position, node in enumerate(model.graph):
        if not node.name or node.name in known:
            node.name = f"{node.op_type}_{position}"
            while node.name in known:
                node.name += "_"
        known.add(node.name)


def rewrite(graph: Graph, plan: Plan) -> ir.Model:
    """Return the model with sparse operators in place of the operators of a plan.

    Args:
        graph: The graph of the model, whose nodes have unique names. Not changed.
        plan: Not empty.
    Returns:
        A valid model that imports the domain of the sparse operators. Its tensors may share memory
        with those of the first model.
    """
    model = graph.model.clone()
    if model.ir_version < FIRST_WITH_DEFAULTS:
        # In the first versions of the format every initializer has to be listed as an input. From
        # the next one on, initializers that are not listed are constants.
        model.graph.inputs[:] = needed_inputs(model)
        model.ir_version = FIRST_WITH_DEFAULTS
    _replace(model, plan, in_planes(plan))
    return model


def extract_subgraph(
    graph: Graph,
    operators: Sequence[SparseOperator],
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
) -> ir.Model:
    """Extract some operators into a model, to be timed.

    Args:
        graph: The graph of the operators, whose nodes have unique names.
        operators: The operators to extract. Those that are not in the plan are not replaced.
        plan: As for :func:`rewrite`; may be empty.
        shapes: Shapes of the model's inputs.
    """
    inside = {node for each in operators for node in (*each.nodes, *each.feeding)}
    nodes = sorted(inside, key=graph.position.__getitem__)
    made = {value for node in nodes for value in node.outputs}
    read = {value: None for node in nodes for value in node.inputs if value and value not in made}
    found = ((value, graph.constant(value)) for value in read)
    constants = {value: array for value, array in found if array is not None}
    view = ir.GraphView(
        [value for value in read if value not in constants],
        [o.y for o in operators if o.y.is_graph_output() or not users(o.y) <= inside],
        nodes=nodes,
        initializers=list(constants),
        opset_imports=graph.model.opset_imports,
        name="subgraph",
    )
    copy = view.clone()
    types = {operator.x.name: operator.x_dtype for operator in operators}
    typed = ((value, o.y_dtype) for o in operators for value in (o.y, o.residual) if value)
    types |= {value.name: dtype for value, dtype in typed}
    for value in (*copy.inputs, *(value for node in copy for value in node.outputs)):
        value.type = value.shape = None  # recorded for the whole model
    for value, array in constants.items():
        copy.initializers[value.name].const_value = ir.tensor(array, name=value.name)
    for value in (*copy.inputs, *copy.outputs):
        value.dtype = types.get(value.name, ir.DataType.FLOAT)
    for value in copy.inputs:
        value.shape = ir.Shape(shapes[value.name])
    model = ir.Model(copy, ir_version=max(FIRST_WITH_DEFAULTS, graph.model.ir_version))
    _replace(model, plan, in_planes(plan))
    return model


def _replace(model: ir.Model, plan: Plan, planes: Collection[str]) -> None:
    """Replace operators in a copy of the graph in which they were found, or of a part of it.

    Args:
        model: Changed in place. Its nodes and values have the names of those of the first graph.
        plan: The operators, some or all of which are in the copy.
        planes: Names of the values in this layout.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph}
    read_or_made = (value for node in graph for value in (*node.inputs, *node.outputs))
    values = {value.name: value for value in read_or_made if value is not None}
    taken = value_names(model)
    stored: dict[tuple, ir.Value] = {}
    ends = {operator.nodes[-1].name: operator for operator in plan}
    before = {place.depthwise: operator for operator, place in plan.items() if place.depthwise}
    for last in list(graph):
        operator = ends.get(last.name)
        if operator is None or plan[operator].depthwise:
            continue
        # One node computes both an operator and the depthwise one after it.
        first, *depthwise = [before[operator], operator] if operator in before else [operator]
        built = first.build(plan[first].block, values, planes, *depthwise)
        replaced = [nodes[node.name] for each in (first, *depthwise) for node in each.nodes]
        add_constants(graph, built, stored, taken)
        (new,), old = built.outputs, values[operator.y.name]
        new.meta.update(old.meta)
        ir.convenience.replace_nodes_and_values(graph, last, replaced, [built], [old], [new])
        values[new.name] = new
        if new.name in planes:
            new.shape = recorded_planes_shape(old.shape)
    if plan:
        graph.opset_imports.setdefault(DOMAIN, VERSION)
    remove_unused(graph)


def add_constants(
    graph: ir.Graph, node: ir.Node, stored: dict[tuple, ir.Value], taken: set[str]
) -> None:
    """Add a new node's constants to a graph, with unused names; equal ones are stored once."""
    for place, value in enumerate(node.inputs):
        if value is None or value.graph is not None:
            continue
        tensor = value.const_value
        content = (tensor.dtype, tuple(tensor.shape), sha256(tensor.tobytes()).digest())
        if content not in stored:
            value.name = unused_name(value.name, taken)
            taken.add(value.name)
            graph.initializers.add(value)
            stored[content] = value
        node.replace_input_with(place, stored[content])


def remove_unused(graph: ir.Graph) -> None:
    """Remove what the outputs do not depend on, such as weights that are packed.

    Unlike onnx_ir's pass it leaves the other nodes as they are, and the scales of annotations.
    """
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    kept = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    scales = {
        name
        for value in kept
        if value.uses() or value.is_graph_output()
        for name in value.meta.get(_ANNOTATION, {}).values()
    }
    for name, value in list(graph.initializers.items()):
        used = value.uses() or value.is_graph_output() or value.is_graph_input()
        if not used and name not in scales:
            del graph.initializers[name]


def unused_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with as many underscores after it as it takes to be a new one."""
    while name in taken:
        name += "_"
    return name


def value_names(model: ir.Model) -> set[str]:
    """Return the names of all values in a model's graphs, which a new name must avoid."""
    names = set()
    for graph in model.graphs():
        names |= {value.name for value in (*graph.inputs, *graph.initializers.values())}
        names |= {v.name for node in graph for v in (*node.inputs, *node.outputs) if v is not None}
    return names
