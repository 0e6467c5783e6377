"""A model as a graph of operators, and which of them are layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx, nn

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.matrix import LayerMatrix


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight tensor and the operators that multiply it onto their inputs.

    Args:
        name: The parameter.
        matrix: Its matrices.
        bias: Parameter that is added to each row's output, and to nothing else; None if none.
    """

    name: str
    matrix: LayerMatrix
    bias: str | None


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A model's operators in evaluation mode, read once; runs on any module of the same names.

    Attributes:
        layers: Parameter name to layer, in the order in which the model runs them.
        reasons: Parameter name to the reason why it has no layer.
        blocks: Successive parts of the model, each with one tensor in and one out: the names of
            the parameters that each uses, in order.
    """

    layers: Mapping[str, Layer]
    reasons: Mapping[str, str]
    blocks: tuple[tuple[str, ...], ...]

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example: Tree,
        open_axes: Mapping[str, Iterable[int]] | None = None,
    ) -> "LayerGraph":
        """Read a model's graph with ``torch.export``.

        Args:
            model: Any module, also that of an exported program. Not changed. Traced in evaluation
                mode.
            example: Inputs, each ``[n, ...]``, on the model's device.
            open_axes: Name of an input (see :func:`~mfac_compress.mfac.batch.named_tensors`) to
                its axes, beside the first, whose length may differ from the example's.

        Raises:
            ValueError: If the model cannot be traced, or fixes the number of samples.
        """
        raise NotImplementedError

    def run(self, module: nn.Module, inputs: Tree) -> tuple[fx.node.Any, ...]:
        """The outputs of a module of the same names, in the order of the graph's."""
        raise NotImplementedError
