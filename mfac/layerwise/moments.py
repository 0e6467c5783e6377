"""Moments of the inputs that a layer gets, and of the outputs that it should give.

H = Σ x xᵀ over the inputs of a layer is half the Hessian of the squared error of its output, with
respect to each row of its weights. Products are computed in the dtype of the inputs, about the
mean of each portion, and summed in float64. So what rounding errors there are, are relative to how
much the inputs vary, not to their size: those of a float32 sum over one portion, see
:func:`~mfac_compress.mfac.numerics.sum_error`.

References:
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.layers import Layer, Use
from mfac_compress.mfac.layerwise.operators import Operator, choose_positions
from mfac_compress.mfac.layerwise.run import last_uses
from mfac_compress.mfac.layerwise.tracing import named_state
from mfac_compress.mfac.numerics import exact_products
from mfac_compress.mfac.process_group import ProcessGroup

# Numbers of a portion: it should stay in a core's cache, and be tall enough for fast products.
_AT_ONCE = 1 << 21
# Columns of a band of a symmetric product: what lies left of it is known already.
_BAND = 128


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the n positions at which a layer was seen. All in float64.

    Args:
        count: n. The same in all groups, but for parts of a weight tensor that are used apart,
            as those of cross-attention. Shape ``[g]``.
        H: Σ x xᵀ. Shape ``[g, k, k]``.
        sum_x: Σ x. Shape ``[g, k]``.
        sum_y: Σ y of the dense model's outputs without their bias; None if they were not asked
            for. Shape ``[g, r]``.
        cross: Σ y xᵀ; None likewise. Shape ``[g, r, k]``.
    """

    count: Tensor
    H: Tensor
    sum_x: Tensor
    sum_y: Tensor | None = None
    cross: Tensor | None = None

    @classmethod
    def zeros(cls, layer: Layer, device: torch.device | str, *, targets: bool) -> "Moments":
        """Sums over no position."""
        g, r, k = layer.matrix.groups, layer.matrix.rows, layer.matrix.columns

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        of_targets = (zeros(g, r), zeros(g, r, k)) if targets else (None, None)
        return cls(zeros(g), zeros(g, k, k), zeros(g, k), *of_targets)

    @property
    def mean_x(self) -> Tensor:
        """Shape ``[g, k]``."""
        return self.sum_x / self.count[:, None]

    @property
    def mean_y(self) -> Tensor:
        """Shape ``[g, r]``."""
        return self.sum_y / self.count[:, None]

    def centred(self) -> "Moments":
        """The moments about the means: Σ (x - x̄)(x - x̄)ᵀ and Σ (y - ȳ)(x - x̄)ᵀ.

        The sums of x and y are then zero.
        """
        H = self.H - self.sum_x[:, :, None] * self.mean_x[:, None, :]
        result = replace(self, H=H, sum_x=torch.zeros_like(self.sum_x))
        if self.cross is None:
            return result
        cross = self.cross - self.sum_y[:, :, None] * self.mean_x[:, None, :]
        return replace(result, cross=cross, sum_y=torch.zeros_like(self.sum_y))

    def all_reduce(self, group: ProcessGroup) -> "Moments":
        """The moments over the positions of all processes."""
        return Moments(*(None if x is None else group.all_reduce(x) for x in self._sums))

    @property
    def _sums(self) -> tuple[Tensor | None, ...]:
        return (self.count, self.H, self.sum_x, self.sum_y, self.cross)


@torch.no_grad()
def layer_moments(
    graph: LayerGraph,
    module: nn.Module,
    names: Sequence[str],
    batches: Iterable[Tree],
    *,
    positions: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Moments]:
    """Collect the moments of layers in one pass over the batches.

    A weight that several operators use has the sum over all of them.

    Args:
        graph: Of a model with the module's names.
        module: Its layers' inputs count.
        names: Weights, of ``graph.layers``.
        batches: Inputs.
        positions: Random positions of each sample (windows of a convolution, tokens ...); None
            for all.
        generator: Chooses the positions, on the CPU.

    Returns:
        Name to moments, in float64 on the module's device.

    Raises:
        ValueError: If a name has no layer, there is no batch, or an input is not finite.
    """
    layers = _chosen(graph, names)
    uses = {use.node: layer for layer in layers for use in layer.uses}
    of_node = {use.node: use for layer in layers for use in layer.uses}
    sums: dict[str, Moments] = {}
    program = graph.program
    nodes = program.nodes[: 1 + max(map(program.nodes.index, uses), default=-1)]
    release = last_uses(nodes, ())
    state = named_state(module)
    for inputs in batches:
        values = program.start(inputs)
        for node in nodes:
            values[node] = program.value(node, state, values)
            if node in uses:
                layer, use = uses[node], of_node[node]
                x, y = program.of(use.input, state, values), values[node]
                if layer.name not in sums:
                    sums[layer.name] = Moments.zeros(layer, y.device, targets=False)
                chosen = choose_positions(use.operator, y, inputs, positions, generator)
                add_moments(sums[layer.name], use, x, y, chosen)
            for used in release[node]:
                values.pop(used, None)
    return {layer.name: _checked(layer.name, sums) for layer in layers}


@torch.no_grad()
def add_moments(
    moments: Moments,
    use: Use,
    x: Tensor,
    y: Tensor,
    chosen: Tensor,
    *,
    target: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Add an operator's moments on one batch to those of its layer.

    Args:
        moments: Changed.
        use: The operator.
        x: Its input.
        y: Its output; only its shape counts.
        chosen: Numbers of the positions that count.
        target: The output that it should have, of the shape of ``y``.
        bias: What is to be taken from each row of the targets.
    """
    _Part.of(use.operator, x, y, chosen, target).add_to(moments, use, bias)


@torch.no_grad()
def input_moments(operator: Operator, x: Tensor, y: Tensor, chosen: Tensor) -> Moments:
    """Return the moments of an operator's inputs in one batch.

    Args:
        operator: What multiplies.
        x: Its input.
        y: Its output; only its shape counts.
        chosen: Numbers of the positions that count.
    """
    part = _Part.of(operator, x, y, chosen, None)
    H, sum_x = part.of_inputs()
    return Moments(H.new_full((operator.groups,), part.count), H, sum_x)


class _Part:
    """Sums of one operator, in the order of its own columns."""

    def __init__(self, operator: Operator, device: torch.device) -> None:
        self.operator = operator
        g, r, k = operator.groups, operator.rows, operator.columns
        self.count = 0
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.H, self.sum_x = zeros(g, k, k), zeros(g, k)
        self.cross, self.sum_y = zeros(g, r, k), zeros(g, r)

    @classmethod
    def of(
        cls, operator: Operator, x: Tensor, y: Tensor, chosen: Tensor, target: Tensor | None
    ) -> "_Part":
        """The sums over some positions of a batch."""
        inputs = operator.inputs(x, y)
        outputs = None if target is None else operator.outputs(target)
        part = cls(operator, x.device)
        with exact_products():
            for some in chosen.split(max(1, _AT_ONCE // inputs.width)):
                part.add(inputs.at(some), None if outputs is None else outputs.at(some))
        return part

    def add(self, X: Tensor, Y: Tensor | None) -> None:
        """Add one portion: vectors ``[g, n, k]`` and ``[g, n, r]``."""
        n = X.shape[1]
        self.count += n
        shift = X.mean(dim=1, keepdim=True)
        X = X - shift
        at = shift.squeeze(1).double()
        rest = X.sum(dim=1).double()  # what rounding leaves of the mean
        sum_x = rest + n * at
        self.sum_x += sum_x
        self.H += _gram(X)
        # Σ (x - a)(x - a)ᵀ + a Σ(x - a)ᵀ + Σ(x - a) aᵀ + n a aᵀ
        self.H += at[:, :, None] * sum_x[:, None, :] + rest[:, :, None] * at[:, None, :]
        if Y is None:
            return
        shift = Y.mean(dim=1, keepdim=True)
        Y = Y - shift
        of_y = shift.squeeze(1).double()
        rest = Y.sum(dim=1).double()
        self.sum_y += rest + n * of_y
        self.cross += torch.bmm(Y.mT, X)
        self.cross += rest[:, :, None] * at[:, None, :] + of_y[:, :, None] * sum_x[:, None, :]

    def of_inputs(self) -> tuple[Tensor, Tensor]:
        """H and Σ x in the order of the operator's matrix."""
        ordered = self.operator.ordered
        # Rounding leaves no sum symmetric to the last bit, and solvers read one half only.
        return ordered(ordered((self.H + self.H.mT) / 2).mT), ordered(self.sum_x)

    def add_to(self, moments: Moments, use: Use, bias: Tensor | None) -> None:
        """Add the sums to those of the layer."""
        operator, split, groups = self.operator, use.split, use.groups
        H, sum_x = self.of_inputs()
        moments.count[groups] += self.count
        moments.H[groups] += H.repeat_interleave(split, dim=0)
        moments.sum_x[groups] += sum_x.repeat_interleave(split, dim=0)
        if moments.cross is None:
            return
        cross = operator.ordered(self.cross)
        if bias is not None:
            b = bias.double().view(operator.groups, operator.rows)
            self.sum_y -= self.count * b
            cross = cross - b[:, :, None] * sum_x[:, None, :]
        rows = moments.cross.shape[1]
        moments.sum_y[groups] += self.sum_y.reshape(-1, rows)
        moments.cross[groups] += cross.reshape(-1, rows, cross.shape[-1])


def _gram(X: Tensor) -> Tensor:
    """XᵀX of each group. ``[g, n, k]`` -> ``[g, k, k]``; the half below the diagonal is copied."""
    k = X.shape[-1]
    if k < 2 * _BAND:
        return torch.bmm(X.mT, X)
    H = X.new_empty(len(X), k, k)
    for start in range(0, k, _BAND):
        stop = min(start + _BAND, k)
        H[:, start:stop, start:] = torch.bmm(X[..., start:stop].mT, X[..., start:])
        H[:, stop:, start:stop] = H[:, start:stop, stop:].mT
    return H


def _chosen(graph: LayerGraph, names: Sequence[str]) -> list[Layer]:
    for name in names:
        if name not in graph.layers:
            reason = graph.reasons.get(name, "the model has no such parameter")
            raise ValueError(f"names must be weights of layers. Got {name}: {reason}.")
    return [layer for name, layer in graph.layers.items() if name in {*names}]


def _checked(name: str, sums: Mapping[str, Any]) -> Moments:
    if name not in sums:
        raise ValueError("batches must hold at least one batch. Got none.")
    check_finite(name, sums[name])
    return sums[name]


def check_finite(name: str, moments: Moments) -> None:
    """Check that a layer's inputs, and its targets, were finite.

    Raises:
        ValueError: If not.
    """
    diagonal = moments.H.diagonal(dim1=-2, dim2=-1)
    if not (
        diagonal.isfinite().all() and (moments.cross is None or moments.cross.isfinite().all())
    ):
        raise ValueError(
            f"The inputs and outputs of each layer must be finite. Got NaN or infinity at {name}. "
            "Check the data, and that the model's values fit into its dtype."
        )
