"""The inputs of a file's layers on given batches, and how each layer multiplies them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir

from mfac_compress.export.names import Feeds
from mfac_compress.export.session import call, open_session
from mfac_compress.export.sparse.graph import attributes
from mfac_compress.export.sparse.nodes import Window
from mfac_compress.export.sparse.operator import Unsupported
from mfac_compress.export.sparse.patterns.conv import constant_window


@dataclass(frozen=True, eq=False)
class LayerProduct:
    """A layer as the product of matrices, one a group, with vectors of its input.

    Args:
        weight: Name of its weight.
        input: Name of its input.
        values: The weight.
        window: Of a convolution; None for a matrix product over the input's last axis.
        outputs_first: Whether the outputs are the weight's first axis. Otherwise they are its last.
    """

    weight: str
    input: str
    values: np.ndarray
    window: Window | None
    outputs_first: bool

    @property
    def groups(self) -> int:
        """g, number of matrices."""
        return self.window.group if self.window else 1

    def matrices(self, weight: np.ndarray) -> np.ndarray:
        """The matrices of a tensor of the weight's shape. ``[g, r, k]``."""
        rows = weight if self.outputs_first else weight.T
        return rows.reshape(self.groups, len(rows) // self.groups, -1)

    def tensor(self, matrices: np.ndarray) -> np.ndarray:
        """Invert :meth:`matrices`. Contiguous."""
        shape = self.values.shape if self.outputs_first else self.values.shape[::-1]
        rows = matrices.reshape(shape)
        return np.ascontiguousarray(rows if self.outputs_first else rows.T)


def layer_products(model: onnx.ModelProto) -> Iterator[tuple[str, LayerProduct | str]]:
    """Yield each layer with a constant weight: the weight's name, and the product that it is.

    Where it is none, the reason takes its place.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _READERS and node.input[1] in constants:
            values = onnx.numpy_helper.to_array(constants[node.input[1]])
            yield node.input[1], _READERS[node.op_type](ir.from_proto(node), values)


def layer_inputs(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds], scratch: Path
) -> Iterator[tuple[Feeds, dict[str, np.ndarray]]]:
    """Run a model in ONNX Runtime, and yield some of its tensors for each batch.

    Args:
        model: Not changed.
        names: The tensors: inputs of layers.
        batches: Inputs by name.
        scratch: Folder for temporary files, of which none stays.
    Yields:
        The batch; its tensors by name.
    """
    graph = ir.from_proto(model)
    given = {value.name for value in graph.graph.inputs}
    wanted = {*names} - given - {value.name for value in graph.graph.outputs}
    for node in graph.graph:
        graph.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    with TemporaryDirectory(prefix=".inputs-", dir=scratch) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph, path, external_data="model.data")
        session = open_session(path)
        outputs = [one.name for one in session.get_outputs()]
        for batch in batches:
            found = dict(batch) | dict(zip(outputs, call(session, batch), strict=True))
            yield batch, {name: found[name] for name in names}


def _conv(node: ir.Node, values: np.ndarray) -> LayerProduct | str:
    window = constant_window(attributes(node), values.shape[2:])
    if isinstance(window, Unsupported):
        return window.reason
    return _of(node, values, window, outputs_first=True)


def _gemm(node: ir.Node, values: np.ndarray) -> LayerProduct | str:
    given = attributes(node)
    if given.get("transA", 0):
        return "its input is transposed"
    return _of(node, values, None, outputs_first=bool(given.get("transB", 0)))


def _matmul(node: ir.Node, values: np.ndarray) -> LayerProduct | str:
    if values.ndim != 2:
        return f"its weight has {values.ndim} axes and not 2"
    return _of(node, values, None, outputs_first=False)


def _transposed(node: ir.Node, values: np.ndarray) -> str:
    del node, values
    return "it is a transposed convolution"


def _of(
    node: ir.Node, values: np.ndarray, window: Window | None, *, outputs_first: bool
) -> LayerProduct:
    source, weight = node.inputs[:2]
    return LayerProduct(weight.name, source.name, values, window, outputs_first)


_READERS: dict[str, Callable[[ir.Node, np.ndarray], LayerProduct | str]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
