"""From an ONNX graph to a module of PyTorch, and where each of its tensors is stored."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from mfac_compress.export.from_onnx import operators  # noqa: F401  (registers them)
from mfac_compress.export.from_onnx.layers import Layer, find_layers
from mfac_compress.export.from_onnx.module import Input, OnnxModule, Step
from mfac_compress.export.from_onnx.names import add_module, add_tensor, module_name
from mfac_compress.export.from_onnx.operators.elementwise import DTYPES
from mfac_compress.export.from_onnx.origins import stored_tensor
from mfac_compress.export.from_onnx.registry import OPERATORS, Operator, UnsupportedError
from mfac_compress.export.from_onnx.values import MOST_FLOATS, MOST_INTEGERS, Known, check_size
from mfac_compress.export.sparse.graph import needed_inputs

FIRST_OPSET = 9
_LISTED = 8
_QUANTISED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip


class Stored(NamedTuple):
    """Where a file has a parameter or buffer.

    Args:
        name: Of the initializer, or of the output of a Constant node.
        turned: Whether the file has its transpose.
    """

    name: str
    turned: bool


@dataclass(frozen=True, eq=False)
class Converted:
    """A graph as a module.

    Args:
        module: In evaluation mode.
        stored: Where each of the tensors is stored that may change, by their names in the module.
        batch: The only number of samples that the file takes; None for any.
        dense: Operators that are not converted, since no output that counts depends on them.
    """

    module: OnnxModule
    stored: Mapping[str, Stored]
    batch: int | None
    dense: tuple[str, ...]


def convert(
    model: ir.Model, *, outputs: Sequence[str] | None = None, writable: Collection[str]
) -> Converted:
    """Convert a graph.

    Args:
        model: Nodes in topological order; not changed.
        outputs: The outputs that count; None for all.
        writable: Names of the stored tensors that can be written back.

    Raises:
        ValueError: If an operator cannot be converted, the graph has other inputs than tensors
            whose first axis is the batch, or it is in 8 or 16 bits.
    """
    return _Conversion(model, outputs, {*writable}).run()


class _Conversion:
    def __init__(self, model: ir.Model, outputs: Sequence[str] | None, writable: set[str]) -> None:
        graph = model.graph
        self._opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        self._graph = graph
        names = [value.name for value in graph.outputs]
        missing = [name for name in outputs or () if name not in names]
        if missing:
            raise ValueError(f"There must be an output {missing[0]!r}. It has {', '.join(names)}.")
        self._outputs = [
            value for value in graph.outputs if outputs is None or value.name in outputs
        ]
        self._inputs = _inputs(model)
        self._batch = _batch(self._inputs)
        self._nodes = _before(graph, self._outputs)
        self._writable = {
            value
            for value in (*graph.initializers.values(), *_constants(graph))
            if value.name in writable and stored_tensor(value).dtype == ir.DataType.FLOAT
        }
        self._module = OnnxModule(
            self._inputs, [value.name for value in self._outputs], len(names) == 1
        )

    def run(self) -> Converted:
        if self._opset < FIRST_OPSET:
            raise ValueError(
                f"Its operators must be of opset {FIRST_OPSET} or later. Got {self._opset}. "
                "onnx.version_converter.convert_version makes them newer."
            )
        self._check_operators()
        layers = [*find_layers(self._nodes, self._read, self._writable)]
        stored: dict[str, Stored] = {}
        at: dict[ir.Node, tuple[str, Layer]] = {}
        for layer in layers:
            weight = next(iter(layer.tensors.values())).value.name
            name = add_module(self._module, module_name(weight), layer.module)
            at |= dict.fromkeys(layer.nodes, (name, layer))
            for part, found in layer.tensors.items():
                stored[f"{name}.{part}"] = Stored(found.value.name, found.turned)
        steps = _with_last([*self._steps(at)], self._module.outputs)
        known, tensors = self._constants(steps, {each.name for each in stored.values()})
        self._module.plan(steps, known, tensors)
        self._module.eval()
        self._record()
        left = [node for node in self._graph if node not in {*self._nodes}]
        return Converted(self._module, stored, self._batch, tuple(map(_label, left)))

    def _record(self) -> None:
        """Run a file for a fixed number of samples once, so that it knows where they are."""
        shapes = [each.shape for each in self._inputs]
        if self._batch is None:
            return
        if any(shape is None or None in shape for shape in shapes):
            raise ValueError(
                "All axes of its inputs must have fixed lengths where the first one has. Got "
                f"{ {each.name: each.shape for each in self._inputs} }. Export it with an open "
                "batch axis."
            )
        for shape in shapes:
            check_size(shape)
        with torch.no_grad():
            self._module(*(torch.zeros(each.shape, dtype=each.dtype) for each in self._inputs))

    def _read(self, node: ir.Node) -> Operator:
        attributes = {
            name: _plain(attribute.value)
            for name, attribute in node.attributes.items()
            if not attribute.is_ref()
        }
        return Operator(
            node.op_type,
            self._opset,
            attributes,
            len(node.outputs),
            not any(value.uses() or value.is_graph_output() for value in node.outputs[1:]),
            self._batch,
            self._module.place,
        )

    def _check_operators(self) -> None:
        """Raise ValueError for operators that the outputs depend on and that are not known."""
        quantised = [node for node in self._nodes if _is_quantised(node)]
        if quantised:
            raise ValueError(
                "It must be in float32, as it was before it was quantised. It has "
                f"{_label(quantised[0])}. Prune that file, and quantise it with the recipe's "
                "quantize."
            )
        half = [
            value.name
            for value in self._graph.initializers.values()
            if value.const_value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        ]
        if half:
            raise ValueError(
                f"It must be in float32. {half[0]} and others ({len(half)} in all) are in 16 bits. "
                "Export it again in float32."
            )
        reasons = [reason for node in self._nodes if (reason := self._unknown(node))]
        if reasons:
            more = f" and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
            raise ValueError(
                f"All operators that the outputs depend on must be known. These are not: "
                f"{'; '.join(reasons[:_LISTED])}{more}. {self._advice()}"
            )

    def _unknown(self, node: ir.Node) -> str | None:
        if node.domain or (node.op_type not in OPERATORS and node.op_type != "Constant"):
            domain = f" of {node.domain}" if node.domain else ""
            return f"{_label(node)}{domain}"
        if node.op_type == "Constant":
            return None if stored_tensor(node.outputs[0]) else f"{_label(node)}, no tensor"
        try:
            OPERATORS[node.op_type](self._read(node))
        except UnsupportedError as error:
            return f"{_label(node)} {error}"
        except Exception as error:  # an attribute that is missing or of another type
            return f"{_label(node)}, whose attributes are not valid ({error})"
        return None

    def _advice(self) -> str:
        """Name outputs that depend on known operators only."""
        fine = [
            value.name
            for value in self._graph.outputs
            if not any(self._unknown(node) for node in _before(self._graph, [value]))
        ]
        if fine:
            return f"Set model.output to one that does not depend on them: {', '.join(fine)}."
        return "Compress the model that the file was made from."

    def _steps(self, at: Mapping[ir.Node, tuple[str, Layer]]) -> Iterator[Step]:
        done = {end for _, layer in at.values() for end in layer.ends} - {*at}
        for node in self._nodes:
            if node in done or node.op_type == "Constant":
                continue
            inputs: Sequence[ir.Value | None] = node.inputs
            if node in at:
                name, layer = at[node]
                inputs = [node.inputs[place] for place in layer.rest if place < len(node.inputs)]
                outputs = layer.ends[layer.nodes.index(node)].outputs
                compute: Any = layer.compute
            else:
                name, outputs = None, node.outputs
                compute = OPERATORS[node.op_type](self._read(node))
            yield Step(
                _label(node),
                name,
                compute,
                tuple("" if value is None else value.name for value in inputs),
                tuple(value.name for value in outputs),
                (),
            )

    def _constants(
        self, steps: Sequence[Step], held: Collection[str]
    ) -> tuple[dict[str, Known], dict[str, str]]:
        """Give the module all other stored tensors: small ones as numbers."""
        needed = {name for step in steps for name in step.inputs} | {*self._module.outputs}
        known, tensors = {}, {}
        for value in (*self._graph.initializers.values(), *_constants(self._graph)):
            tensor = stored_tensor(value)
            if value.name in held or tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            is_float = tensor.dtype.is_floating_point()
            if value.name not in needed and not (is_float and value.is_initializer()):
                continue
            array = tensor.numpy()
            if array.size <= (MOST_FLOATS if is_float else MOST_INTEGERS):
                dtype = torch.from_numpy(np.zeros(1, array.dtype)).dtype
                numbers = np.array(array.tolist(), dtype=object).reshape(array.shape)
                known[value.name] = Known(numbers, dtype)
                continue
            name = add_tensor(self._module, value.name, _held(array))
            if value.name in needed:
                tensors[value.name] = name
            self._module.reasons[name] = _why(value, {*self._nodes})
        return known, tensors


def _held(array: np.ndarray) -> Tensor:
    """A constant as a frozen parameter, which counts among the model's, or as a buffer."""
    tensor = torch.from_numpy(np.array(array))
    if tensor.dtype == torch.float32 and bool(tensor.isfinite().all()):
        return nn.Parameter(tensor, requires_grad=False)
    return tensor


def _why(value: ir.Value, needed: set[ir.Node]) -> str:
    users = [use.node for use in value.uses()]
    other = [node for node in users if node not in needed]
    if other:
        return f"read by {_label(other[0])}, which is not converted"
    if len(users) > 1:
        return "read by several nodes in different ways"
    return f"not the weight of a layer ({_label(users[0])})" if users else "nothing reads it"


def _with_last(steps: Sequence[Step], kept: Sequence[str]) -> list[Step]:
    """The steps that count, each with the values that can be forgotten after it.

    A Transpose of a weight that a layer has taken does not.
    """
    seen, found = {"", *kept}, []
    for step in reversed(steps):
        if seen.isdisjoint({*step.outputs} - {""}):
            continue
        last = tuple(sorted({*step.inputs, *step.outputs} - seen))
        seen |= {*last}
        found.append(replace(step, last=last))
    return found[::-1]


def _before(graph: ir.Graph, outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that some values depend on, in the graph's order."""
    found, waiting = set(), [*outputs]
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += node.inputs
    return [node for node in graph if node in found]


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    """The outputs of Constant nodes that hold tensors."""
    for node in graph:
        if node.op_type == "Constant" and not node.domain and stored_tensor(node.outputs[0]):
            yield node.outputs[0]


def _inputs(model: ir.Model) -> list[Input]:
    """The inputs that a caller must give.

    Raises:
        ValueError: If one is no tensor of numbers with a batch axis.
    """
    found = []
    for value in needed_inputs(model):
        dtype = None if value.dtype is None else DTYPES.get(int(value.dtype))
        is_tensor = isinstance(value.type, ir.TensorType)
        if not is_tensor or dtype is None or (value.shape is not None and not len(value.shape)):
            raise ValueError(
                "Its inputs must be tensors of numbers with a first axis for samples. Input "
                f"{value.name!r} is {value.type} of shape {value.shape}."
            )
        shape = value.shape
        axes = None if shape is None else tuple(a if _is_length(a) else None for a in shape)
        found.append(Input(value.name, dtype, axes))
    if not found:
        raise ValueError("It must have an input. It has none.")
    return found


def _is_length(axis: Any) -> bool:
    return isinstance(axis, int) and axis > 0


def _batch(inputs: Sequence[Input]) -> int | None:
    """The only number of samples that a file takes.

    Raises:
        ValueError: If its inputs differ in it.
    """
    sizes = {each.name: each.shape[0] for each in inputs if each.shape is not None}
    if len({*sizes.values()}) > 1:
        raise ValueError(
            "The first axis of all its inputs must be the batch. Got the lengths "
            f"{ {name: size or 'open' for name, size in sizes.items()} }."
        )
    return next(iter(sizes.values()), None)


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


def _is_quantised(node: ir.Node) -> bool:
    name = node.op_type
    return name in _QUANTISED or name.startswith(("QLinear", "QAttention", "DynamicQuantize"))


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type
