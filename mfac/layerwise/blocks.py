"""Fit the parameters of one block after the other to the dense block's output."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.least_squares import Progress
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup


def fit_blocks(
    module: nn.Module,
    dense: nn.Module,
    graph: LayerGraph,
    masks: Mapping[str, Tensor],
    batches: Iterable[Tree],
    *,
    epochs: int = 6,
    lr: float = 1e-3,
    fixed: bool = True,
    together: int = 1,
    storage: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup = SINGLE,
) -> None:
    """Fit each block of the pruned model to the output of the dense one's, by Adam.

    A block's input comes from the pruned model, whose blocks before it are fitted already. The loss
    is the mean squared error; the learning rate falls along half a cosine. Batch norms stay in
    evaluation mode. No labels.

    Args:
        module: The pruned model, in evaluation mode. Changed in place: weights (masked ones stay
            +0), biases, scales and shifts that require gradients. Buffers stay as they are, and so
            does a parameter that several blocks use.
        dense: The model before pruning, of the same names, in evaluation mode, on the same device.
        graph: Of either.
        masks: Weight to mask, True = kept, of the weight's shape.
        batches: Inputs; a step is made on each. Iterated once if ``fixed``, else once for each
            block and pass: they may be augmented anew each time.
        epochs: Passes over the batches for each block.
        lr: Learning rate of Adam at the start of each block.
        fixed: The batches are the same in every pass, so the activations at the block's two ends
            are kept rather than computed anew from the inputs.
        together: Number of successive blocks that are fitted as one.
        storage: Floating-point type in which activations are kept.
        seed: Orders the batches.
        progress: Called after each block with the name of its last weight.
        group: The processes that share the samples, which must have equally many batches. All end
            up with the same weights.

    Raises:
        ValueError: If there is no batch, or a mask has no parameter of its shape.
    """
    raise NotImplementedError
