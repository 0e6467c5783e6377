"""The constant values of a graph."""

from collections.abc import Collection
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export.sparse.fold import FOLDED, MAX_ELEMENTS, fold

_MAX_NODES = 20_000
_MAX_ELEMENTS_FOLDED = 2**31
"""Limit for all values folded in a file, since they take time and memory."""
_ATTRIBUTES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Constants:
    """Initializers, sparse ones too, Constant nodes, and what nodes compute from the dense ones.

    Computed constants are folded on first use, within limits: beyond them a value does not count as
    a constant.

    Args:
        model: Nodes in topological order.
        defaults: Names of the initializers that a caller may replace.
    """

    def __init__(self, model: onnx.ModelProto, defaults: Collection[str]) -> None:
        self._model = model
        self._tensors = {t.name: t for t in model.graph.initializer if t.name not in defaults}
        sparse = model.graph.sparse_initializer
        self._sparse = {s.values.name: s for s in sparse if s.values.name not in defaults}
        self._makers: dict[str, int] = {}
        self._found: dict[str, np.ndarray | None] = {}
        self._nodes_left, self._elements_left = _MAX_NODES, _MAX_ELEMENTS_FOLDED
        for position, node in enumerate(model.graph.node):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Constant":
                tensor = _tensor(node)
                if tensor is not None:
                    self._tensors[node.output[0]] = tensor
            elif self._is_folded(node):
                self._makers |= {name: position for name in node.output if name}

    def array(self, name: str) -> np.ndarray | None:
        """Return the array of a value; None if it is not constant."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        if name not in self._found:
            self._found[name] = self._compute(name)
        return self._found[name]

    def stored(self, name: str) -> str:
        """Return the name of the largest stored tensor that a value is computed from."""
        if name not in self._makers:
            return name
        nodes = self._model.graph.node
        read = (each for position in self._before(name) for each in nodes[position].input)
        stored = [each for each in read if each in self._tensors]
        return max(stored, key=lambda each: prod(self._tensors[each].dims))

    def _compute(self, name: str) -> np.ndarray | None:
        if name in self._sparse:
            return _dense(self._sparse[name])
        return self._fold(name) if name in self._makers else None

    def _is_folded(self, node: onnx.NodeProto) -> bool:
        known = [name in self._tensors or name in self._makers for name in node.input if name]
        return node.op_type in FOLDED and len(known) > 0 and all(known)

    def _before(self, name: str) -> list[int]:
        """Return the positions of the nodes that a value depends on, in execution order."""
        nodes = self._model.graph.node
        found, waiting = set(), [name]
        while waiting:
            position = self._makers.get(waiting.pop())
            if position is not None and position not in found:
                found.add(position)
                waiting += nodes[position].input
        return sorted(found)

    def _fold(self, name: str) -> np.ndarray | None:
        made: dict[str, TensorProto] = {}
        for position in self._before(name):
            node = self._model.graph.node[position]
            known = self._tensors | made
            read = {each: known[each] for each in node.input if each}
            outputs = fold(node, read, self._model) if self._nodes_left > 0 else None
            if outputs is None:
                return None
            self._nodes_left -= 1
            self._elements_left -= sum(array.size for array in outputs)
            if self._elements_left < 0:
                return None
            names = filter(None, node.output)
            made |= {n: numpy_helper.from_array(a, n) for n, a in zip(names, outputs, strict=True)}
        return numpy_helper.to_array(made[name])


def _tensor(node: onnx.NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node; None if it is a string or sparse."""
    (part, *_) = node.attribute or [None]
    if part is None:
        return None
    if part.name == "value":
        return part.t
    if part.name in _ATTRIBUTES:
        array = np.asarray(helper.get_attribute_value(part), _ATTRIBUTES[part.name])
        return numpy_helper.from_array(array)
    return None


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray | None:
    """Return a sparse tensor as a dense array; None if it would be too large."""
    shape = tuple(sparse.dims)
    if prod(shape) > MAX_ELEMENTS:
        return None
    values, places = (numpy_helper.to_array(each) for each in (sparse.values, sparse.indices))
    dense = np.zeros(prod(shape), values.dtype)
    dense[np.ravel_multi_index(places.T, shape) if places.ndim == 2 else places] = values
    return dense.reshape(shape)
