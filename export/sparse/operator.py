"""A part of a graph that one sparse operator can compute."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from mfac_compress.export.sparse.format import BLOCKS, pack
from mfac_compress.export.sparse.nodes import SparseNode, sparse_conv, sparse_linear


@dataclass(frozen=True)
class Window:
    """Strides, pads, dilations and groups of a convolution, along two axes or one.

    Pads are top, left, bottom, right, or left and right.
    """

    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    group: int = 1


@dataclass(frozen=True, eq=False)
class SparseOperator:
    """y = activation(x ∘ W + bias + residual), where ∘ is a matrix product or a convolution.

    Attributes:
        name: Name of the layer's node, unique among the operators of a graph.
        weight_name: Name of the tensor that the weight was read from.
        nodes: Positions of the nodes that it replaces, ascending. Of their outputs, other nodes
            read only y.
        x: Name of the input.
        y: Name of the output.
        weight: float32, ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``.
        window: Convolution window; None for matmul.
        bias: float32, ``[outputs]``.
        residual: Name of a value of y's shape.
        activation: As :func:`sparse_linear` takes it.
        clip: Bounds of the activation clip.
        selection: Whether it only copies values: it is useful between sparse convolutions, never on
            its own.
    """

    name: str
    weight_name: str
    nodes: tuple[int, ...]
    x: str
    y: str
    weight: np.ndarray
    window: Window | None = None
    bias: np.ndarray | None = None
    residual: str | None = None
    activation: Literal["none", "relu", "clip", "gelu", "gelu_tanh"] = "none"
    clip: tuple[float, float] | None = None
    selection: bool = False

    element_type = TensorProto.FLOAT
    feeding = ()

    @property
    def takes_planes(self) -> bool:
        """Whether its input and output can be in the layout planes."""
        return self.window is not None

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return 1 - np.count_nonzero(self.weight) / self.weight.size

    @property
    def can_fuse(self) -> bool:
        """Whether a sum may still be fused: not after the activation."""
        return self.activation == "none"

    def blocks(self, max_padding: float) -> list[int]:
        """Return the block sizes that do not need too much padding with zeros.

        Args:
            max_padding: Largest number of stored values per nonzero value.
        """
        kept = max(1, np.count_nonzero(self.weight))
        sizes = {size: self._stored(size) for size in BLOCKS}
        return [size for size in BLOCKS if size == 1 or sizes[size] <= max_padding * kept]

    def _stored(self, block: int) -> int:
        group = self.window.group if self.window else 1
        return pack(self.weight, block=block, group=group).values.size

    def build(self, block: int, planes: Collection[str] = ()) -> SparseNode:
        """Build the node that computes it.

        Args:
            block: Number of outputs that share their inputs.
            planes: Names of the values in this layout.
        """
        ends = {"bias": self.bias, "residual": self.residual}
        ends |= {"activation": self.activation, "clip": self.clip}
        if self.window is None:
            return sparse_linear(self.name, self.x, self.y, pack(self.weight, block=block), **ends)
        return sparse_conv(
            self.name,
            self.x,
            self.y,
            pack(self.weight, block=block, group=self.window.group),
            strides=self.window.strides,
            pads=self.window.pads,
            dilations=self.window.dilations,
            input_layout=_layout(self.x, planes),
            output_layout=_layout(self.y, planes),
            residual_layout=_layout(self.residual or self.y, planes),
            **ends,
        )


def _layout(name: str, planes: Collection[str]) -> str:
    return "planes" if name in planes else "nchw"


@dataclass(frozen=True)
class Unsupported:
    """The reason why no sparse operator can compute a layer."""

    reason: str
