"""Fit the weights that are left of each layer to the dense layer's outputs, in closed form."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup

Progress = Callable[[str], None]
"""Called with the name of the layer, or block, that is done."""


def least_squares(
    module: nn.Module,
    dense: nn.Module,
    graph: LayerGraph,
    masks: Mapping[str, Tensor],
    inputs: Sequence[Tree],
    *,
    positions: int | None = 64,
    ridge: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup = SINGLE,
) -> None:
    """Solve one masked layer after the other, in the order in which the model runs them.

    A layer gets the inputs of the pruned model, whose layers before it are solved already, and is
    fitted to the outputs of the dense model on the same samples. No labels.

    Args:
        module: The pruned model, in evaluation mode. Changed in place: the masked weights; the
            biases of their layers, or else the running means of the batch norms that follow.
        dense: The model before pruning, of the same names, in evaluation mode, on the same device.
        graph: Of either.
        masks: Weight to mask, True = kept, of the weight's shape. Layers whose mask keeps all are
            fitted too. A weight without a layer (``graph.reasons``) is passed over.
        inputs: Batches of this process, held together: the activations of all of them are kept.
        positions: Random positions of each sample; None for all.
        ridge: Pull towards the present weights, as a multiple of the mean diagonal of H.
        seed: Chooses the positions.
        progress: Called after each layer with its name.
        group: The processes that share the samples. All end up with the same weights.

    Raises:
        ValueError: If there is no input, or a mask has no parameter of its shape.
    """
    raise NotImplementedError
