"""A part of a quantised graph that one sparse operator can compute."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from mfac_compress.export.sparse.nodes import SparseNode
from mfac_compress.export.sparse.operator import Window
from mfac_compress.export.sparse.quads import QUAD, pack_1x4
from mfac_compress.export.sparse.quantised_nodes import Rounding, sparse_qconv, sparse_qlinear


@dataclass(frozen=True, eq=False)
class QuantisedOperator:
    """y = rounded((x − x_zero_point) ∘ W + bias), where ∘ is a matrix product or a convolution.

    It has the interface of :class:`SparseOperator`.

    Attributes:
        name: Name of the layer's node, unique among the operators of a graph.
        weight_name: Name of the tensor that the weight was read from.
        nodes: Positions of the nodes that it replaces, ascending: the layer, its activation, and
            the QuantizeLinear. Of their outputs, other nodes read only y.
        feeding: Positions of the DequantizeLinear nodes before the layer, whose outputs other nodes
            may read.
        x: Name of the uint8 input.
        y: Name of the uint8 output.
        weight: int8, ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
        rounding: Requantisation of the sums.
        window: Convolution window; None for matmul.
        bias: int32, ``[outputs]``.
    """

    name: str
    weight_name: str
    nodes: tuple[int, ...]
    feeding: tuple[int, ...]
    x: str
    y: str
    weight: np.ndarray
    rounding: Rounding
    window: Window | None = None
    bias: np.ndarray | None = None

    element_type = TensorProto.UINT8
    residual = None
    selection = False
    takes_planes = False

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return 1 - np.count_nonzero(self.weight) / self.weight.size

    def blocks(self, max_padding: float) -> list[int]:
        """Return the only block size, four inputs, regardless of padding."""
        del max_padding
        return [QUAD]

    def build(self, block: int, planes: Collection[str] = ()) -> SparseNode:
        """Build the node that computes it; blocks are always quads, and planes are for floats."""
        del block, planes
        if self.window is None:
            packed = pack_1x4(self.weight)
            return sparse_qlinear(self.name, self.x, self.y, packed, self.rounding, bias=self.bias)
        return sparse_qconv(
            self.name,
            self.x,
            self.y,
            pack_1x4(self.weight, group=self.window.group),
            self.rounding,
            bias=self.bias,
            strides=self.window.strides,
            pads=self.window.pads,
            dilations=self.window.dilations,
        )
