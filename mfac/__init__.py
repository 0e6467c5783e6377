"""Curvature and pruning: gradients, the inverse empirical Fisher, Optimal Brain Surgeon, M-FAC.

Gradients in, a mask and new weights out:

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    >>> batches = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(64)]

    >>> shapes = {name: p.shape for name, p in model.named_parameters() if p.ndim > 1}
    >>> layout, units = Unstructured().resolve(shapes, sparsity=0.8)
    >>> fisher = empty_fisher(BlockPartition.of_tensors(layout.bounds, 32), num_gradients=64)
    >>> for rows in gradient_rows(model, nn.CrossEntropyLoss(), layout, batches):
    ...     fisher.add(rows)
    >>> pruned = prune(layout.flatten(model.state_dict()), invert(fisher, damping=1e-5), units)
    >>> model.load_state_dict(layout.unflatten(pruned.weights), strict=False).unexpected_keys
    []
    >>> masks = layout.unflatten(pruned.mask)  # True = kept
    >>> sum(int(mask.sum()) for mask in masks.values()), layout.size
    (38, 192)
"""

from mfac_compress.mfac.fisher import Fisher, Inverse, empty_fisher, fisher_of, invert
from mfac_compress.mfac.gradients import gradient_rows
from mfac_compress.mfac.layout import Layout
from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.mfac.optimizer import MFAC
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.pruning import Pruned, prune, prune_by_magnitude
from mfac_compress.mfac.units import NM, Block, Units, Unstructured

__all__ = [
    "MFAC",
    "NM",
    "Block",
    "BlockPartition",
    "Fisher",
    "Inverse",
    "Layout",
    "MaskHooks",
    "Pruned",
    "Units",
    "Unstructured",
    "empty_fisher",
    "fisher_of",
    "gradient_rows",
    "invert",
    "prune",
    "prune_by_magnitude",
]
