"""How much memory it takes to prune and to repair layers, from one run on a few samples."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mfac_compress.mfac.batch import Tree, named_tensors, size
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.layers import Layer
from mfac_compress.mfac.layerwise.run import last_uses
from mfac_compress.mfac.layerwise.tracing import named_state

# Matrices of the size of H that a solver holds beside it: copies in another order, H with the
# ridge, its factor and its inverse.
_COPIES = 6
_FLOAT64 = 8


def bytes_of_least_squares(
    graph: LayerGraph, module: nn.Module, names: Iterable[str], inputs: Tree
) -> tuple[int, int]:
    """Most bytes that least squares takes: for each sample, and whatever their number.

    The values of both models are held for all samples at once, the moments of one layer after
    the other.

    Args:
        graph: Of the module.
        module: Either model.
        names: Weights that are repaired; those without a layer count nothing.
        inputs: Some samples.
    """
    given = sum(_bytes(tensor) for _, tensor in named_tensors(inputs))
    values = 2 * live_bytes(graph, module, inputs) + 2 * given
    layers = [graph.layers[name] for name in names if name in graph.layers]
    solver = max((_COPIES * _moments(layer, targets=True) for layer in layers), default=0)
    return -(-values // size(inputs)), solver


def bytes_of_pruning(
    graph: LayerGraph, module: nn.Module, names: Iterable[str], inputs: Tree, batch_size: int
) -> int:
    """Most bytes that pruning by layers takes: the moments of all at once, and one batch.

    Args:
        graph: Of the module.
        module: The model.
        names: Weights that are pruned, of ``graph.layers``.
        inputs: Some samples.
        batch_size: Samples that are computed at once.
    """
    moments = [_moments(graph.layers[name], targets=False) for name in names]
    values = live_bytes(graph, module, inputs) * batch_size // size(inputs)
    return values + sum(moments) + _COPIES * max(moments, default=0)


@torch.no_grad()
def live_bytes(graph: LayerGraph, module: nn.Module, inputs: Tree) -> int:
    """Most bytes of values that are held at a time, each until its last use.

    Inputs, parameters and buffers do not count, nor does a value that shares memory with another.
    """
    program, state = graph.program, named_state(module)
    values = program.start(inputs)
    given = {_address(tensor) for tensor in (*state.values(), *_tensors([*values.values()]))}
    release = last_uses(program.nodes, ())
    most = 0
    for node in program.nodes:
        values[node] = program.value(node, state, values)
        held = {_address(x): x.untyped_storage().nbytes() for x in _tensors([*values.values()])}
        most = max(most, sum(count for at, count in held.items() if at not in given))
        for used in release[node]:
            values.pop(used, None)
    return most


def _moments(layer: Layer, *, targets: bool) -> int:
    """Bytes of a layer's moments; those of its outputs where there are targets."""
    g, r, k = layer.matrix.groups, layer.matrix.rows, layer.matrix.columns
    return _FLOAT64 * g * k * (k + r if targets else k)


def _tensors(values: list[object]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
