"""Fit the weights that are left of each layer to the dense layer's outputs, in closed form.

Layer after layer, in the order in which the model runs them: inputs x of the pruned model, whose
layers before it are solved already, and outputs y of the dense model, on the same samples. With
the means x̄, ȳ taken off, each row w of the layer's matrix, with the mask's zeros, minimises

    Σ (y − ȳ − w (x − x̄))² + ρ ‖w − w₀‖²,

and ȳ − w x̄ goes into the layer's bias, or else into the running mean of the batch norm behind it.

Where the layer's output is added to a shortcut s, y is the dense model's sum less the pruned
model's shortcut, so that the layer makes up for the shortcut's error as well. Where a batch norm
stands between, all this is taken back through its scale.

References:
    He, Zhang, Sun (2017), Channel pruning for accelerating very deep neural networks, section 3.
    Frantar, Singh, Alistarh (2022), Optimal Brain Compression, appendix (sequential OBC).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.layers import Layer, Norm, Use
from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.layerwise.moments import Moments, add_moments, check_finite
from mfac_compress.mfac.layerwise.operators import choose_positions
from mfac_compress.mfac.layerwise.run import last_uses, run
from mfac_compress.mfac.layerwise.tracing import Program, named_state
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup

Progress = Callable[[str], None]
"""Called with the name of the layer, or block, that is done."""
# A channel whose batch norm scales it by less than this share of the largest scale cannot make up
# for anything: its weights would have to be huge.
_LEAST_SCALE = 0.01


@torch.no_grad()
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
    """Solve one masked layer after the other, in the order in which the model runs them. No labels.

    The squared error of each layer's output, at the positions that are looked at, does not rise.
    A weight that several operators use is solved at the last of them, by the moments of all; what
    depends on it is then computed anew.

    Args:
        module: The pruned model, in evaluation mode. Changed in place: the masked weights; the
            biases of their layers that require gradients, or else the running means of the batch
            norms that follow and are not frozen.
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
    check_masks(module, masks)
    if not inputs:
        raise ValueError("inputs must hold at least one batch. Got none.")
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for name, layer in graph.layers.items() if name in masks]
    pair = _Pair(graph.program, module, dense, inputs)
    sums: dict[str, Moments] = {}
    of_node = {use.node: (layer, use) for layer in layers for use in layer.uses}
    last = {layer.uses[-1].node for layer in layers}
    remaining = len(layers)
    for node in graph.program.nodes:
        if not remaining:
            break
        pair.run_dense(node)
        if node in of_node:
            layer, use = of_node[node]
            for number, batch in enumerate(inputs):
                x, target = pair.value(use.input, number), _target(pair, layer, use, number)
                if layer.name not in sums:
                    sums[layer.name] = Moments.zeros(layer, target.device, targets=True)
                chosen = choose_positions(use.operator, target, batch, positions, generator)
                bias = None if use.bias is None else pair.value(use.bias, number)
                add_moments(sums[layer.name], use, x, target, chosen, target=target, bias=bias)
        if node in last:
            moments = sums.pop(layer.name).all_reduce(group)
            check_finite(layer.name, moments)
            _solve(module, layer, masks[layer.name], moments, ridge)
            remaining -= 1
            if len(layer.uses) > 1:
                pair.run_anew_before(node)
            if progress is not None:
                progress(layer.name)
        pair.run_pruned(node)


def check_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check that each mask has a parameter.

    Raises:
        ValueError: If not, or if their shapes differ.
    """
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            of = list(parameters[name].shape) if name in parameters else "no parameter"
            raise ValueError(
                "Each mask must have a parameter of its shape. Got the mask "
                f"{name} {list(mask.shape)} for {of}."
            )


class _Pair:
    """The values of the pruned and the dense model on several batches, operator by operator.

    Args:
        program: Of both.
        module: The pruned model; it may change between operators.
        dense: The dense model.
        inputs: The batches.
    """

    def __init__(
        self, program: Program, module: nn.Module, dense: nn.Module, inputs: Sequence[Tree]
    ) -> None:
        self.program = program
        self.states = named_state(module), named_state(dense)
        self.started = [program.start(batch) for batch in inputs]
        self.pruned: list[dict[Node, Any]] = [dict(values) for values in self.started]
        self.dense: list[dict[Node, Any]] = [dict(values) for values in self.started]
        self._release = last_uses(program.nodes, ())

    def value(self, node: Node, number: int) -> Tensor:
        """A value of the pruned model."""
        return self.program.of(node, self.states[0], self.pruned[number])

    def value_of_dense(self, node: Node, number: int) -> Tensor:
        """A value of the dense model."""
        return self.program.of(node, self.states[1], self.dense[number])

    def run_dense(self, node: Node) -> None:
        """Run an operator of the dense model."""
        for values in self.dense:
            values[node] = self.program.value(node, self.states[1], values)

    def run_pruned(self, node: Node) -> None:
        """Run an operator of the pruned model, and free the values that neither needs any more."""
        for values, wanted in zip(self.pruned, self.dense, strict=True):
            values[node] = self.program.value(node, self.states[0], values)
            for used in self._release[node]:
                values.pop(used, None)
                wanted.pop(used, None)

    def run_anew_before(self, node: Node) -> None:
        """Compute the pruned model's values again, as weights have changed that made them."""
        before = self.program.nodes[: self.program.nodes.index(node)]
        for number, values in enumerate(self.pruned):
            keep = values.keys() & {*before}
            anew = run(self.program, before, self.states[0], self.started[number], keep)
            self.pruned[number] = {**self.started[number], **anew}


def _target(pair: _Pair, layer: Layer, use: Use, number: int) -> Tensor:
    """The output that the pruned model's operator should have, with its bias."""
    target = pair.value_of_dense(use.node, number)
    if layer.bias is not None and use.bias is None:
        # The bias is added by an operator of its own, and this output is to be without it.
        mine, its = (state[layer.bias] for state in pair.states)
        target = target + (its - mine)
    error = _shortcut_error(pair, use, target, number)
    if layer.norm is not None:
        mine, its = (_affine(layer.norm, state) for state in pair.states)
        target, error = _before_norm(mine, its, target, error)
    return target if error is None else target + error


def _shortcut_error(pair: _Pair, use: Use, like: Tensor, number: int) -> Tensor | None:
    """The dense model's other summand less the pruned one's, in the shape of the output."""
    residual = use.residual
    known = pair.pruned[number]
    if residual is None or not residual.needs <= known.keys():
        return None
    error = pair.value_of_dense(residual.other, number) - known[residual.other]
    return residual.to_output(pair.program, known, error, like)


def _affine(norm: Norm, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch norm as scale and mean of ``scale · (y − mean)``. Shape ``[channels]`` each."""
    scale = (state[norm.var] + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * state[norm.weight]
    shift = 0 if norm.bias is None else state[norm.bias]
    safe = torch.where(_is_small(scale), 1, scale)
    return scale, state[norm.mean] - torch.where(_is_small(scale), 0, shift / safe)


def _before_norm(
    mine: tuple[Tensor, Tensor],
    its: tuple[Tensor, Tensor],
    target: Tensor,
    error: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Take the dense model's output through its norm and back through the pruned model's."""

    def by_channel(x: Tensor) -> Tensor:
        return x.view(1, -1, *[1] * (target.ndim - 2))

    small = _is_small(mine[0])
    scale = torch.where(small, 1, mine[0])
    if not all(torch.equal(a, b) for a, b in zip(mine, its, strict=True)):
        ratio = torch.where(small, 1, its[0] / scale)
        target = by_channel(ratio) * (target - by_channel(its[1])) + by_channel(mine[1])
    if error is not None:
        error = error * by_channel(torch.where(small, 0, 1 / scale))
    return target, error


def _is_frozen(norm: Norm, state: Mapping[str, Tensor]) -> bool:
    """Whether a batch norm has a scale or shift, and neither requires a gradient."""
    own = [state[name] for name in (norm.weight, norm.bias) if name is not None]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _is_small(scale: Tensor) -> Tensor:
    return scale.abs() <= _LEAST_SCALE * scale.abs().max()


def _solve(module: nn.Module, layer: Layer, mask: Tensor, moments: Moments, ridge: float) -> None:
    """Put the best weights on the mask into the module, and the means into bias or norm."""
    state = named_state(module)
    weight, matrix = state[layer.name], layer.matrix
    bias = None if layer.bias is None else state[layer.bias]
    if bias is not None and not bias.requires_grad:
        bias = None
    is_centred = bias is not None or (layer.norm is not None and not _is_frozen(layer.norm, state))
    of = moments.centred() if is_centred else moments
    W = masked_least_squares(
        matrix.matrices(weight).double(),
        of.H,
        matrix.matrices(mask.to(weight.device)),
        cross=of.cross,
        ridge=ridge,
    )
    weight.copy_(matrix.weight(W))
    weight.masked_fill_(~mask.to(weight.device), 0)
    if not is_centred:
        return
    W = matrix.matrices(weight).double()
    missing = moments.mean_y - torch.einsum("grk,gk->gr", W, moments.mean_x)
    if bias is not None:
        change = torch.zeros_like(bias, dtype=torch.float64).flatten()
        change[layer.bias_order.to(bias.device).flatten()] = missing.flatten()
        bias.copy_(bias + change.view(bias.shape))
    else:
        mean = state[layer.norm.mean]
        mean.copy_(mean - missing.flatten())
