"""Where the tensors that nodes read are stored, and who else reads them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

_SAME = ("Identity", "Transpose")


class Origin(NamedTuple):
    """A stored tensor that a node reads.

    Args:
        value: An initializer, or the output of a Constant node.
        turned: Whether the node reads the transpose of the matrix that is stored.
    """

    value: ir.Value
    turned: bool

    @property
    def array(self) -> np.ndarray:
        """The tensor as it is stored."""
        return stored_tensor(self.value).numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return tuple(stored_tensor(self.value).shape)


class Reader(NamedTuple):
    """A node that reads a stored tensor, as which of its inputs, and whether transposed."""

    node: ir.Node
    place: int
    turned: bool


def stored_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for other values."""
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain or len(node.attributes) != 1:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor


def origin(value: ir.Value | None) -> Origin | None:
    """Find the stored tensor that a value is, as it is or as the transpose of a matrix."""
    turned = False
    while value is not None:
        tensor = stored_tensor(value)
        if tensor is not None:
            return Origin(value, turned)
        node = value.producer()
        if node is None or node.domain or node.op_type not in _SAME:
            return None
        if node.op_type == "Transpose":
            order = node.attributes.get("perm")
            if order is None or [*order.as_ints()] != [1, 0]:
                return None
            turned = not turned
        value = node.inputs[0]
    return None


def readers(value: ir.Value, turned: bool = False) -> Iterator[Reader | None]:
    """Yield all nodes that read a stored tensor, also as :func:`origin` sees through.

    Yields:
        The nodes, those in subgraphs among them; None where the graph returns it.
    """
    if value.is_graph_output():
        yield None
    for user, place in value.uses():
        through = user.outputs and origin(user.outputs[0])
        if through and user.op_type in _SAME:
            transposes = user.op_type == "Transpose"
            yield from readers(user.outputs[0], turned != transposes)
        else:
            yield Reader(user, place, turned)
