"""Channels that can change places with each other without changing what a model computes.

The outputs of a layer may come in any order, if all that read them expect the same order: batch
norms, activations, the next layer's columns. Each output of each layer is a *slot*. Going through
the operators, the slots of every value's channels are followed; slots that are added to each other,
as in a residual stream, become one. Slots that lie in the same tensors equally often can change
places. Where an operator is not known to treat channels alike, its slots stay where they are.

References:
    Pool, Yu (2021), Channel permutations for N:M sparsity, section 4.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.layers import Layer
from mfac_compress.mfac.layerwise.operators import Linear
from mfac_compress.mfac.layerwise.selections import shape_of
from mfac_compress.mfac.layerwise.tracing import Program, named_state

aten = torch.ops.aten
Place = tuple[str, int]
"""A parameter or buffer, and one of its axes."""

# A slot that always holds zeros.
_ZERO = -1
# Operators of one value that treat each element alike.
_ELEMENTWISE = {
    aten.relu.default,
    aten.relu6.default,
    aten.gelu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.elu.default,
    aten.leaky_relu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.clamp.default,
}
# ... and of windows of images, each channel for itself.
_POOLS = {
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
}
_PADS = {aten.pad.default, aten.constant_pad_nd.default}


@dataclass(frozen=True, eq=False)
class ChannelSet:
    """Channels that can change places with each other.

    Args:
        places: Where each channel lies in each tensor: its indices along the axis. Int64, shape
            ``[channels, copies]``; channels are in the order of the first place.
    """

    places: Mapping[Place, Tensor]

    @property
    def count(self) -> int:
        """Number of channels."""
        return len(next(iter(self.places.values())))

    @torch.no_grad()
    def reorder(self, module: nn.Module, order: Tensor) -> None:
        """Put channel ``order[i]`` in the place of channel i, in all tensors. Shape ``[channels]``.

        Args:
            module: Changed in place.
            order: A permutation.
        """
        state = named_state(module)
        for (name, axis), at in self.places.items():
            tensor = state[name]
            index = torch.arange(tensor.shape[axis])
            index[at.flatten()] = at[order].flatten()
            tensor.copy_(tensor.index_select(axis, index.to(tensor.device)))


@dataclass(frozen=True)
class _Channels:
    """The slots of a value's channels, along one axis."""

    axis: int
    slots: Tensor


def channel_sets(graph: LayerGraph) -> list[ChannelSet]:
    """Find all sets of at least two channels that can change places.

    Args:
        graph: Of the model.
    """
    return _Walk(graph).sets()


class _Walk:
    """Goes through the operators of a model, and keeps which slots lie where."""

    def __init__(self, graph: LayerGraph) -> None:
        self._program: Program = graph.program
        self._layer_of = {use.node: layer for layer in graph.layers.values() for use in layer.uses}
        self._same: list[int] = []
        """Each slot's parent in the tree of slots that are the same."""
        self._fixed: set[int] = set()
        self._values: dict[Node, _Channels] = {}
        self._held: dict[Place, Tensor] = {}
        self._readers: dict[str, set[Node]] = defaultdict(set)
        """The operators that are known to read a tensor in the order that it is held in."""
        for node in self._program.nodes:
            found = self._follow(node)
            if found is None:
                self._fix(node.all_input_nodes)
            else:
                self._values[node] = found
        self._fix(self._program.outputs)
        self._fix_what_others_read()

    def sets(self) -> list[ChannelSet]:
        """The slots that lie in the same tensors and values, equally often."""
        lies_in: dict[int, Counter] = defaultdict(Counter)
        for node, channels in self._values.items():
            for slot in self._roots(channels.slots):
                lies_in[slot][node] += 1
        indices: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, slots in self._held.items():
            for index, slot in enumerate(self._roots(slots)):
                lies_in[slot][place] += 1
                indices[slot][place].append(index)
        fixed = {self._root(slot) for slot in self._fixed} | {_ZERO}
        alike: dict[frozenset, list[int]] = defaultdict(list)
        for slot, where in lies_in.items():
            if slot not in fixed and indices[slot]:
                alike[frozenset(where.items())].append(slot)
        return [
            ChannelSet(
                {place: torch.tensor([indices[slot][place] for slot in slots]) for place in places}
            )
            for slots in alike.values()
            if len(slots) > 1 and (places := [*indices[slots[0]]])
        ]

    def _follow(self, node: Node) -> _Channels | None:
        """The slots of an operator's value; None if it does not treat the channels alike."""
        if node in self._layer_of:
            return self._through_layer(node, self._layer_of[node])
        if node.target is F.batch_norm:
            return self._through_batch_norm(node)
        if node.target in _BINARY:
            return self._through_both(node)
        return self._through_one(node)

    def _through_one(self, node: Node) -> _Channels | None:
        """An operator of one value, perhaps beside numbers."""
        x = node.args[0] if node.args else None
        given = self._values.get(x) if isinstance(x, Node) else None
        if given is None or {*node.all_input_nodes} & (self._values.keys() - {x}):
            return None
        reader = _READERS.get(node.target)
        return reader(node, given) if reader else None

    def _through_layer(self, node: Node, layer: Layer) -> _Channels | None:
        use, weight = layer.uses[0], node.args[1]
        x = self._values.get(use.input)
        is_plain = len(layer.uses) == 1 and self._program.tensors.get(weight) == layer.name
        is_linear = isinstance(use.operator, Linear)
        if not is_plain or layer.matrix.order is not None:
            return None
        if is_linear and use.operator.axis != -1:
            return None
        if use.bias is not None and use.bias not in self._program.tensors:
            return None
        axis = len(shape_of(node)) - 1 if is_linear else 1
        if x is not None and x.axis != axis:
            return None
        rows = shape_of(weight)[0]
        if use.operator.groups == 1:
            if x is not None:
                self._hold(layer.name, 1, x.slots, node)
            slots = self._new(rows)
        elif x is not None and use.operator.groups == rows == len(x.slots):
            slots = x.slots  # depthwise
        else:
            return None
        self._hold(layer.name, 0, slots, node)
        if use.bias is not None:
            self._hold(self._program.tensors[use.bias], 0, slots, node)
        return _Channels(axis, slots)

    def _through_batch_norm(self, node: Node) -> _Channels | None:
        x, *tensors = node.args[:5]
        channels = self._values.get(x)
        tensors = [tensor for tensor in tensors if tensor is not None]
        if channels is None or channels.axis != 1:
            return None
        if not all(tensor in self._program.tensors for tensor in tensors):
            return None
        for tensor in tensors:
            self._hold(self._program.tensors[tensor], 0, channels.slots, node)
        return channels

    def _through_both(self, node: Node) -> _Channels | None:
        """A sum or product of two values of the same channels, or of one and a number."""
        operands = [argument for argument in node.args[:2] if isinstance(argument, Node)]
        given = [self._values.get(operand) for operand in operands]
        if len(operands) == 1:
            return given[0]
        first, second = given
        if first is None or second is None or first.axis != second.axis:
            return None
        if len(first.slots) != len(second.slots):
            return None
        one, other = shape_of(operands[0]), shape_of(operands[1])
        if len(one) != len(other):
            return None
        zero = (first.slots == _ZERO) | (second.slots == _ZERO)
        if zero.any() and node.target is not aten.add.Tensor:
            return None
        for pair in zip(first.slots[~zero].tolist(), second.slots[~zero].tolist(), strict=True):
            self._join(*pair)
        return _Channels(first.axis, torch.where(first.slots == _ZERO, second.slots, first.slots))

    def _new(self, count: int) -> Tensor:
        start = len(self._same)
        self._same.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def _root(self, slot: int) -> int:
        while slot != _ZERO and self._same[slot] != slot:
            slot = self._same[slot]
        return slot

    def _roots(self, slots: Tensor) -> list[int]:
        return [self._root(slot) for slot in slots.tolist()]

    def _join(self, one: int, other: int) -> None:
        self._same[self._root(other)] = self._root(one)

    def _hold(self, name: str, axis: int, slots: Tensor, reader: Node) -> None:
        """A tensor has the order of some slots along an axis."""
        self._readers[name].add(reader)
        before = self._held.setdefault((name, axis), slots)
        for one, other in zip(before.tolist(), slots.tolist(), strict=True):
            if _ZERO in (one, other):
                self._fixed.update({one, other} - {_ZERO})
            else:
                self._join(one, other)

    def _fix(self, nodes: Any) -> None:
        for node in nodes:
            if node in self._values:
                self._fixed.update(self._values[node].slots.tolist())

    def _fix_what_others_read(self) -> None:
        nodes = {name: node for node, name in self._program.tensors.items()}
        run = {*self._program.nodes}
        for (name, _), slots in self._held.items():
            if ({*nodes[name].users} & run) - self._readers[name]:
                self._fixed.update(slots.tolist())


def _unchanged(_: Node, given: _Channels) -> _Channels:
    return given


def _pool(node: Node, given: _Channels) -> _Channels | None:
    return given if given.axis == 1 and len(shape_of(node)) == 4 else None


def _slice(node: Node, given: _Channels) -> _Channels | None:
    axis = _argument(node, "dim") % len(shape_of(node))
    if axis != given.axis:
        return given
    start, end, step = (_argument(node, key) for key in ("start", "end", "step"))
    return _Channels(axis, given.slots[start:end:step])


def _pad(node: Node, given: _Channels) -> _Channels | None:
    """Zeros beside the channels are slots of zeros; beside pixels, all channels get the same."""
    mode = "constant" if node.target is aten.constant_pad_nd.default else _argument(node, "mode")
    widths = _argument(node, "pad")
    place = 2 * (len(shape_of(node)) - 1 - given.axis)
    before, after = widths[place : place + 2] if place < len(widths) else (0, 0)
    if not (before or after):
        return given
    if mode != "constant" or _argument(node, "value") or before < 0 or after < 0:
        return None
    slots = F.pad(given.slots, (before, after), value=_ZERO)
    return _Channels(given.axis, slots)


def _flatten(node: Node, given: _Channels) -> _Channels | None:
    """``[n, c, h, w]`` to ``[n, c·h·w]``: each channel becomes neighbouring copies."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if given.axis != 1 or len(after) != 2 or str(before[0]) != str(after[0]):
        return None
    copies = [int(length) for length in before[2:]]
    return _Channels(1, given.slots.repeat_interleave(torch.tensor(copies).prod().int().item()))


def _mean(node: Node, given: _Channels) -> _Channels | None:
    ndim = len(shape_of(node.args[0]))
    axes = sorted(axis % ndim for axis in _argument(node, "dim") or range(ndim))
    if given.axis in axes:
        return None
    lost = 0 if _argument(node, "keepdim") else sum(axis < given.axis for axis in axes)
    return _Channels(given.axis - lost, given.slots)


def _argument(node: Node, name: str) -> Any:
    """An argument of an operator by name, or its default."""
    for given, argument in zip(node.args, node.target._schema.arguments, strict=False):
        if argument.name == name:
            return given
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    return node.kwargs.get(name, defaults[name])


_BINARY = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}
_READERS: dict[Any, Callable[[Node, _Channels], _Channels | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _unchanged),
    **dict.fromkeys(_POOLS, _pool),
    aten.slice.Tensor: _slice,
    **dict.fromkeys(_PADS, _pad),
    aten.flatten.using_ints: _flatten,
    aten.reshape.default: _flatten,
    aten.mean.dim: _mean,
}
