"""Find the layers among the operators of a model."""

from collections.abc import Mapping
from math import gcd

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.followers import with_followers
from mfac_compress.mfac.layerwise.layers import Layer, Use
from mfac_compress.mfac.layerwise.matrix import LayerMatrix
from mfac_compress.mfac.layerwise.recognise import Product, product
from mfac_compress.mfac.layerwise.selections import ends, is_each_once, positions_in
from mfac_compress.mfac.layerwise.tracing import Program


def find_layers(
    program: Program, shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Find the layers of a model.

    Args:
        program: The model's operators.
        shapes: Of all its parameters by name.

    Returns:
        Layers by the names of their weights, in the order in which they run; and the reason for
        each of the other parameters.
    """
    places = {node: i for i, node in enumerate(program.nodes)}
    nodes = {name: node for node, name in program.tensors.items()}
    layers, reasons = {}, {}
    for name, shape in shapes.items():
        node = nodes.get(name)
        users = [] if node is None else [*ends(node, positions_in(shape), places)]
        found = _layer(name, shape, users, places)
        if isinstance(found, Layer):
            layers[name] = found
        else:
            reasons[name] = found
    ordered = sorted(layers.values(), key=lambda layer: places[layer.uses[0].node])
    return {layer.name: with_followers(layer, program, places) for layer in ordered}, reasons


def _layer(
    name: str,
    shape: torch.Size,
    users: list[tuple[Node, Node, Tensor]],
    places: Mapping[Node, int],
) -> Layer | str:
    """The layer of a parameter, or the reason why it has none."""
    if not users:
        return "no operator that leads to an output uses it"
    products: list[tuple[Product, Tensor]] = []
    for user, operand, positions in users:
        found = product(user, operand)
        if isinstance(found, str):
            return found
        products.append((found, found.matrices(positions)))
    products.sort(key=lambda each: places[each[0].node])
    parts: list[Tensor] = []
    for _, matrices in products:
        if not any(torch.equal(matrices, part) for part in parts):
            parts.append(matrices)
    if len({part.shape[-1] for part in parts}) > 1:
        return "several operators use parts of it of differing widths"
    order = torch.cat([part.flatten() for part in parts])
    if not is_each_once(order, shape):
        return "its operators use a part of it, or some part more than once"
    # Parts of differing heights are groups of the greatest height that divides them all.
    rows = gcd(*(part.shape[1] for part in parts))
    groups = [part.shape[0] * part.shape[1] // rows for part in parts]
    uses = []
    for found, matrices in products:
        number = next(i for i, part in enumerate(parts) if torch.equal(part, matrices))
        first, split = sum(groups[:number]), matrices.shape[1] // rows
        use = Use(found.node, found.input, found.operator, first, split, found.bias, end=found.node)
        uses.append(use)
    is_plain = torch.equal(order, positions_in(shape).flatten())
    columns = parts[0].shape[-1]
    matrix = LayerMatrix(tuple(shape), sum(groups), rows, columns, None if is_plain else order)
    return Layer(name, matrix, tuple(uses))
