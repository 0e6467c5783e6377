"""Channels of the model in an order in which blocks of weights lose less: `prune.permute`."""

from dataclasses import replace

import torch

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise import best_orders, channel_sets
from mfac_compress.mfac.layerwise.tracing import output_tensors
from mfac_compress.mfac.units import Block
from mfac_compress.pipeline.digest import content_key
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.model_layers import ModelLayers
from mfac_compress.pipeline.inputs.traced_model import TracedModel
from mfac_compress.pipeline.recipe.schema import Recipe

_EXAMPLE = 8  # samples on which the outputs must stay
# Largest change of an output relative to the largest one: sums run in another order.
_TOLERANCE = 1e-3


def permute_channels(
    recipe: Recipe, model: TracedModel, layers: ModelLayers, targets: PruneTargets
) -> tuple[TracedModel, int]:
    """Put channels that are alike side by side; the model computes what it did.

    Args:
        recipe: Says what is pruned.
        model: The model, whose tensors change.
        layers: Its layers.
        targets: The tensors to prune.

    Returns:
        The model with a digest of its own, and the number of channels that have another place.

    Raises:
        InputError: If the model cannot be traced, or would compute something else.
    """
    if model.keeps_graph:
        raise InputError(
            f"{recipe.where('prune.permute')}: must be false for an ONNX file, whose weights stay "
            "where they are."
        )
    try:
        graph = layers.graph
    except ValueError as error:
        raise InputError(
            f"{recipe.where('prune.permute')}: must be false for a model whose layers cannot be "
            f"traced. {error}"
        ) from error
    pattern, module = targets.pattern, model.module
    assert isinstance(pattern, Block)
    sets = channel_sets(graph)
    weights = {name: module.get_parameter(name) for name in targets.shapes}
    orders = best_orders(
        sets, weights, size=pattern.size, axis=pattern.axis, sparsity=recipe.prune.sparsity
    )
    inputs = _example(layers)
    before = _outputs(module, inputs)
    for channels, order in zip(sets, orders, strict=True):
        if order is not None:
            channels.reorder(module, order)
    for was, now in zip(before, _outputs(module, inputs), strict=True):
        error = (was - now).abs().max().item()
        if not error <= _TOLERANCE * was.abs().max().item():
            raise InputError(
                f"{recipe.where('prune.permute')}: must be false for this model, which computes "
                f"something else with its channels in another order: outputs differ by {error:.2g}."
            )
    found = [order.tolist() for order in orders if order is not None]
    moved = sum(place != channel for order in found for place, channel in enumerate(order))
    digest = content_key({"model": model.digest, "orders": found})
    return replace(model, digest=digest, _dense={}), moved


def _example(layers: ModelLayers) -> Tree:
    positions = [i % len(layers.calibration.split) for i in range(_EXAMPLE)]
    return next(layers.calibration.batches(_EXAMPLE, positions)).inputs


@torch.no_grad()
def _outputs(module: torch.nn.Module, inputs: Tree) -> list[torch.Tensor]:
    return [output.double() for output in output_tensors(module, inputs)]
