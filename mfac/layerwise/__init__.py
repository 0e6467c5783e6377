"""Layers by their own inputs: curvature H = XXᵀ without labels, and repair after pruning.

The other half of Optimal Brain Surgeon: where :mod:`mfac_compress.mfac` weighs a weight by the
curvature of the loss, this package weighs it by the error of its layer's output, and fits what is
left of a layer, or of a block of layers, to the outputs of the dense model.
"""

from mfac_compress.mfac.layerwise.blocks import fit_blocks
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.least_squares import least_squares
from mfac_compress.mfac.layerwise.matrix import LayerMatrix
from mfac_compress.mfac.layerwise.memory import bytes_of_least_squares, bytes_of_pruning
from mfac_compress.mfac.layerwise.moments import Moments, layer_moments
from mfac_compress.mfac.layerwise.pruning import prune_layers

__all__ = [
    "LayerGraph",
    "LayerMatrix",
    "Moments",
    "bytes_of_least_squares",
    "bytes_of_pruning",
    "fit_blocks",
    "layer_moments",
    "least_squares",
    "prune_layers",
]
