"""Moments of the inputs that a layer gets, and of the outputs that it should give.

H = Σ x xᵀ over the inputs of a layer is, up to a factor, the Hessian of the squared error of its
output with respect to each row of its weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.process_group import ProcessGroup


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the n positions at which a layer was seen. All in float64.

    Args:
        count: n.
        H: Σ x xᵀ. Shape ``[g, k, k]``.
        sum_x: Σ x. Shape ``[g, k]``.
        sum_y: Σ y of the dense model's outputs without their bias; None if they were not asked
            for. Shape ``[g, r]``.
        cross: Σ y xᵀ; None likewise. Shape ``[g, r, k]``.
    """

    count: int
    H: Tensor
    sum_x: Tensor
    sum_y: Tensor | None = None
    cross: Tensor | None = None

    @property
    def mean_x(self) -> Tensor:
        """Shape ``[g, k]``."""
        return self.sum_x / self.count

    @property
    def mean_y(self) -> Tensor:
        """Shape ``[g, r]``."""
        return self.sum_y / self.count

    def centred(self) -> "Moments":
        """The moments about the means: Σ (x - x̄)(x - x̄)ᵀ and Σ (y - ȳ)(x - x̄)ᵀ."""
        raise NotImplementedError

    def __add__(self, other: "Moments") -> "Moments":
        """The moments over the positions of both."""
        raise NotImplementedError

    def all_reduce(self, group: ProcessGroup) -> "Moments":
        """The moments over the positions of all processes."""
        raise NotImplementedError


def layer_moments(
    graph: LayerGraph,
    module: nn.Module,
    names: Sequence[str],
    batches: Iterable[Tree],
    *,
    positions: int | None = None,
    generator: torch.Generator | None = None,
    dense: nn.Module | None = None,
) -> Mapping[str, Moments]:
    """Collect the moments of layers in one pass over the batches.

    Args:
        graph: Of a model with the module's names.
        module: Its layers' inputs count.
        names: Weights, of ``graph.layers``.
        batches: Inputs.
        positions: Random positions of each sample (windows of a convolution, tokens ...); None
            for all.
        generator: Chooses the positions, on the CPU.
        dense: Its outputs are the targets y, at the same positions.

    Returns:
        Name to moments, in float64 on the module's device.

    Raises:
        ValueError: If a name has no layer, there is no batch, or an input is not finite.
    """
    raise NotImplementedError
