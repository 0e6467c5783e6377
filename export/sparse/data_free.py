"""Which values follow from the shapes of a model's inputs alone, whatever is in them.

What shapes decide without comparing them is alike for all lengths if it is so for some: a smaller
of two lengths is not, nor a number of nonzeros.
"""

import onnx_ir as ir

from mfac_compress.export.sparse.graph import Graph, argument, is_operator

_OF_SHAPES = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Gather",
    "Identity", "Mul", "Neg", "Range", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split",
    "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
"""What computes one shape from others. Not what compares lengths, except for equality, by which
exporters find the axes that they leave to Expand."""
_SHAPED_BY_DATA = ("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "Unique")
_SHAPED_BY_ARGUMENTS = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Which inputs of a node decide the shape of its outputs by what is in them."""


class DataFree:
    """What follows from the shapes of a graph's inputs.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        stored = {
            value
            for value in graph.model.graph.initializers.values()
            if graph.constant(value) is not None
        }
        self._graph = graph
        self._data = set(stored)
        self._shapes = stored | set(graph.model.graph.inputs)
        for node in graph.nodes:
            if self._makes_data(node):
                self._data.update(node.outputs)
            if self._makes_shapes(node):
                self._shapes.update(node.outputs)

    def has_data(self, value: ir.Value | None) -> bool:
        """Whether what is in a value follows from shapes; also if the value is omitted."""
        return value is None or value in self._data

    def _has_shape(self, value: ir.Value | None) -> bool:
        return value is None or value in self._shapes

    def _makes_data(self, node: ir.Node) -> bool:
        if is_operator(node, "Shape", "Size"):
            return self._has_shape(node.inputs[0])
        if is_operator(node, "Constant"):
            return True
        if not all(map(self.has_data, node.inputs)):
            return False
        return is_operator(node, *_OF_SHAPES) or all(
            self._graph.constant(value) is not None for value in node.outputs
        )

    def _makes_shapes(self, node: ir.Node) -> bool:
        if node.domain == "" and node.op_type in _SHAPED_BY_DATA:
            return False
        places = _SHAPED_BY_ARGUMENTS.get(node.op_type, ()) if node.domain == "" else ()
        deciding = (argument(node, place) for place in places)
        return all(map(self._has_shape, node.inputs)) and all(map(self.has_data, deciding))
