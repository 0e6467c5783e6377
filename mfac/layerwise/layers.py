"""What a layer is: a weight tensor, the operators that multiply it, and what follows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.matrix import LayerMatrix
from mfac_compress.mfac.layerwise.operators import Operator
from mfac_compress.mfac.layerwise.tracing import Program


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm that follows a layer: parameters and buffers by name, None where it has none.

    Args:
        mean: Running mean.
        var: Running variance.
        weight: Scale.
        bias: Shift.
        eps: Added to the variance.
    """

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float


@dataclass(frozen=True, eq=False)
class Residual:
    """An addition of a layer's output, perhaps normalised and in another shape.

    Args:
        path: Nodes from the layer, or its batch norm, to the addition, which bring the output into
            the addition's shape.
        other: The other summand.
        total: The addition.
    """

    path: tuple[Node, ...]
    other: Node
    total: Node

    def to_output(
        self, program: Program, values: Mapping[Node, Any], value: Tensor, like: Tensor
    ) -> Tensor:
        """Bring a tensor of the addition's shape into that of the layer's output.

        Args:
            program: Has the path.
            values: Those of the nodes before the layer.
            value: Of the addition's shape.
            like: Of the output's shape.
        """
        if not self.path:
            return value
        order = torch.arange(like.numel(), device=like.device).view(like.shape)
        for node in self.path:
            order = program.value(node, {}, {**values, node.args[0]: order})
        back = torch.empty_like(value).flatten()
        back[order.flatten()] = value.flatten()
        return back.view(like.shape)

    @property
    def needs(self) -> set[Node]:
        """Nodes that must come before the layer for its output to make up for the other summand."""
        lengths = {n for node in self.path for n in node.all_input_nodes[1:]}
        return {self.other, *lengths}


@dataclass(frozen=True, eq=False)
class Use:
    """One operator that multiplies a weight tensor, or a part of it, with an input.

    Args:
        node: The operator.
        input: Its input.
        operator: How inputs and outputs are laid out.
        first: First of the layer's groups that it multiplies.
        split: Number of the layer's groups that each group of the operator consists of.
        bias: What the operator adds to its output; None if nothing.
        end: The node after which the output has its bias and is normalised.
        residual: The addition that the end flows into, and into nothing else.
    """

    node: Node
    input: Node
    operator: Operator
    first: int
    split: int
    bias: Node | None
    end: Node
    residual: Residual | None = None

    @property
    def groups(self) -> slice:
        """The layer's groups that it multiplies."""
        return slice(self.first, self.first + self.operator.groups * self.split)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight tensor and the operators that multiply it with their inputs.

    Args:
        name: The parameter.
        matrix: Its matrices.
        uses: The operators, in the order in which they run. Nearly always one.
        bias: Parameter that is added to the outputs, and to nothing else; None if there is none.
        bias_order: Position in it of each row of the matrices. Shape ``[g, r]``.
        norm: The batch norm that alone takes the outputs; None if there is none.
    """

    name: str
    matrix: LayerMatrix
    uses: tuple[Use, ...]
    bias: str | None = None
    bias_order: Tensor | None = None
    norm: Norm | None = None
