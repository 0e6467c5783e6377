"""A part of a graph that one sparse operator can compute."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.format import Block, Packed, pack_as, possible_blocks
from mfac_compress.export.sparse.nodes import (
    NO_ACTIVATION,
    Activation,
    Depthwise,
    Epilogue,
    Rounding,
    Scaling,
    Window,
    sparse_node,
)

_MOST_IN_OUTPUTS = 1.1
"""Memory of a weight in blocks of outputs, relative to the smallest."""


@dataclass(frozen=True, eq=False)
class SparseOperator:
    """y = epilogue(x ∘ W + bias + residual), where ∘ is a matrix product or a convolution.

    Attributes:
        name: Name of the layer's node, unique among the operators of a graph.
        weight_name: Name of the tensor that the weight was read from.
        nodes: The nodes that it replaces, in the graph's order; the last one makes y. Of their
            outputs, other nodes read only y.
        x: The input: float32, or uint8 if the operator is quantised.
        weight: ``[outputs, inputs]`` or ``[outputs, inputs / group, (h,) w]``; float32, or int8 if
            the operator is quantised.
        window: Convolution window; None for matmul.
        bias: ``[outputs]``; float32, or int32 before a Rounding.
        residual: A value of y's shape and type.
        epilogue: The activation, or what follows the sums of a quantised operator.
        feeding: The DequantizeLinear nodes before a quantised layer, whose outputs other nodes may
            read.
        selection: Whether it only copies values: it is useful between sparse convolutions, never on
            its own.
    """

    name: str
    weight_name: str
    nodes: tuple[ir.Node, ...]
    x: ir.Value
    weight: np.ndarray
    window: Window | None = None
    bias: np.ndarray | None = None
    residual: ir.Value | None = None
    epilogue: Epilogue = NO_ACTIVATION
    feeding: tuple[ir.Node, ...] = ()
    selection: bool = False

    @property
    def y(self) -> ir.Value:
        """The output."""
        return self.nodes[-1].outputs[0]

    @property
    def is_quantised(self) -> bool:
        """Whether it multiplies 8-bit numbers."""
        return not isinstance(self.epilogue, Activation)

    @property
    def x_dtype(self) -> ir.DataType:
        """Type of x."""
        return ir.DataType.UINT8 if self.is_quantised else ir.DataType.FLOAT

    @property
    def y_dtype(self) -> ir.DataType:
        """Type of y."""
        return ir.DataType.FLOAT if self.makes_floats else ir.DataType.UINT8

    @property
    def makes_floats(self) -> bool:
        """Whether y is float32."""
        scaling = isinstance(self.epilogue, Scaling) and self.epilogue.output is None
        return scaling or not self.is_quantised

    @property
    def takes_planes(self) -> bool:
        """Whether its input and output can be in the layout planes."""
        return self.window is not None and not self.is_quantised

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of images in which each output reads a channel of its own."""
        shape = self.weight.shape
        one_each = self.window is not None and self.window.group == shape[0] and shape[1] == 1
        return one_each and len(shape) == 4

    @property
    def has_depthwise_kernel(self) -> bool:
        """Whether it is a depthwise convolution of floats that the kernels compute as such."""
        if not self.is_depthwise or self.is_quantised or self.residual is not None:
            return False
        *_, height, width = self.weight.shape
        window = self.window
        usual = height == width and height in (3, 5) and max(window.pads) < height
        return usual and window.strides in ((1, 1), (2, 2)) and window.dilations == (1, 1)

    @property
    def takes_depthwise(self) -> bool:
        """Whether one node can compute it and a depthwise convolution that reads its result."""
        images = self.takes_planes and len(self.weight.shape) == 4
        # One of a single channel is depthwise, too, and could be the second of a pair.
        fits = images and self.window.group == 1 and not self.is_depthwise
        return fits and self.residual is None and not self.selection

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return 1 - np.count_nonzero(self.weight) / self.weight.size

    @property
    def can_fuse(self) -> bool:
        """Whether it may be extended: it makes floats, and has no activation."""
        scaled = isinstance(self.epilogue, Scaling)
        activation = self.epilogue.activation if scaled else self.epilogue
        return self.makes_floats and activation == NO_ACTIVATION

    @property
    def _has_more(self) -> bool:
        """Whether an operation on bytes follows its rounded sums, in blocks of outputs only."""
        return isinstance(self.epilogue, Rounding) and self.epilogue.then is not None

    @property
    def can_have_more(self) -> bool:
        """Whether an operation on bytes may follow its rounded sums: it is a convolution, and not
        much larger in blocks of outputs than in others."""
        makes_bytes = isinstance(self.epilogue, Rounding) and not self._has_more
        if not makes_bytes or self.window is None or self.is_depthwise:
            return False
        return Block(4, "outputs") in self.blocks(_MOST_IN_OUTPUTS)

    def activated(self, nodes: Sequence[ir.Node], activation: Activation) -> "SparseOperator":
        """Return it with the activation that some nodes after it compute."""
        scaled = isinstance(self.epilogue, Scaling)
        epilogue = replace(self.epilogue, activation=activation) if scaled else activation
        return replace(self, nodes=(*self.nodes, *nodes), epilogue=epilogue)

    def blocks(self, max_padding: float) -> list[Block]:
        """Return the blocks that do not need too much padding with zeros; at least one.

        Args:
            max_padding: Largest number of stored values, relative to the blocks that need fewest.
        """
        blocks = possible_blocks(self.weight.dtype)
        if self._has_more:
            blocks = tuple(block for block in blocks if block.axis == "outputs")
        stored = {block: self._pack(block).values.size for block in blocks}
        most = max_padding * min(stored.values())
        return [block for block, size in stored.items() if size <= most]

    def _pack(self, block: Block) -> Packed:
        return pack_as(self.weight, block, self.window.group if self.window else 1)

    def build(
        self,
        block: Block,
        values: Mapping[str, ir.Value],
        planes: Collection[str] = (),
        depthwise: "SparseOperator | None" = None,
    ) -> ir.Node:
        """Build the node that computes it, as :func:`sparse_node` does.

        Args:
            block: How the weight is stored.
            values: The values that it may read, by name.
            planes: Names of the values in this layout.
            depthwise: The depthwise convolution that reads y, to be computed in the same node.
        """
        return sparse_node(
            self.name,
            values[self.x.name],
            (depthwise or self).y.name,
            self._pack(block),
            window=self.window,
            bias=self.bias,
            residual=values[self.residual.name] if self.residual else None,
            epilogue=self.epilogue,
            planes=planes,
            depthwise=depthwise._as_depthwise() if depthwise else None,
        )

    def _as_depthwise(self) -> Depthwise:
        return Depthwise(self.name, self.weight, self.window, self.bias, self.epilogue)


@dataclass(frozen=True)
class Unsupported:
    """The reason why no sparse operator can compute a layer."""

    reason: str
