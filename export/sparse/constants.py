"""The constant values of a graph."""

from collections.abc import Collection
from math import prod

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.fold import FOLDED, fold

_MAX_NODES = 20_000
_MAX_ELEMENTS_FOLDED = 2**31
"""Limit for all values folded in a file, since they take time and memory."""


class Constants:
    """Initializers, Constant nodes, and what nodes compute from them.

    Computed constants are folded on first use, within limits: beyond them a value does not count as
    a constant.

    Args:
        model: Nodes in topological order.
        defaults: The initializers that a caller may replace.
    """

    def __init__(self, model: ir.Model, defaults: Collection[ir.Value]) -> None:
        self._model = model
        initializers = model.graph.initializers.values()
        self._tensors = {v: v.const_value for v in initializers if v not in defaults}
        self._makers: dict[ir.Value, int] = {}
        self._found: dict[ir.Value, np.ndarray | None] = {}
        self._nodes_left, self._elements_left = _MAX_NODES, _MAX_ELEMENTS_FOLDED
        self._nodes = list(model.graph)
        for position, node in enumerate(self._nodes):
            if node.domain == "" and node.op_type == "Constant" and len(node.attributes) == 1:
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is not None and tensor.dtype != ir.DataType.STRING:
                    self._tensors[node.outputs[0]] = tensor
            elif self._is_folded(node):
                self._makers |= dict.fromkeys(node.outputs, position)

    def array(self, value: ir.Value) -> np.ndarray | None:
        """Return the array of a value; None if it is not constant."""
        if value in self._tensors:
            return self._tensors[value].numpy()
        if value not in self._found:
            self._found[value] = self._fold(value) if value in self._makers else None
        return self._found[value]

    def stored(self, value: ir.Value) -> str:
        """Return the name of the largest stored tensor that a value is computed from."""
        if value not in self._makers:
            return value.name
        read = (each for node in self._before(value) for each in node.inputs)
        stored = [each for each in read if each in self._tensors]
        return max(stored, key=lambda each: prod(self._tensors[each].shape)).name

    def _is_folded(self, node: ir.Node) -> bool:
        read = [each for each in node.inputs if each is not None]
        known = [each in self._tensors or each in self._makers for each in read]
        is_standard = node.domain == "" and node.op_type in FOLDED
        return is_standard and len(known) > 0 and all(known)

    def _before(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes that a value depends on, in execution order."""
        found, waiting = set(), [value]
        while waiting:
            position = self._makers.get(waiting.pop())
            if position is not None and position not in found:
                found.add(position)
                waiting += self._nodes[position].inputs
        return [self._nodes[position] for position in sorted(found)]

    def _fold(self, value: ir.Value) -> np.ndarray | None:
        made: dict[ir.Value, ir.TensorProtocol] = {}
        for node in self._before(value):
            known = self._tensors | made
            read = {each: known[each] for each in node.inputs if each is not None}
            outputs = fold(node, read, self._model) if self._nodes_left > 0 else None
            if outputs is None:
                return None
            self._nodes_left -= 1
            self._elements_left -= sum(tensor.size for tensor in outputs.values())
            if self._elements_left < 0:
                return None
            made |= outputs
        return made[value].numpy()
