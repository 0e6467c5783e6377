"""Fit the parameters of each block to the dense block's output.

Where :mod:`~mfac_compress.mfac.layerwise.least_squares` solves one linear layer at a time, this
fits all layers of a block together, through what lies between them, by steps of Adam. All blocks
are fitted in the same steps: a block's input is what the pruned model gives at the time, and no
gradient goes from one block into the one before it. So nothing has to be kept, and no batch need
come twice. Only the gradient of the last block, which is little more than a linear layer in most
models, also flows into the block before it, which thereby learns what counts for the outputs.

References:
    Li et al. (2021), BRECQ: pushing the limit of post-training quantization by block
        reconstruction, section 3.2.
    Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network, section 2.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.divergence import kl_divergence
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.least_squares import Progress, check_masks
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import named_state
from mfac_compress.mfac.masking import MaskHooks
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup

# Squared error relative to the variance below which an output is the dense one but for rounding.
# Adam makes steps of full length however small a gradient is.
_ROUNDING = 1e-9


def fit_blocks(
    module: nn.Module,
    dense: nn.Module,
    graph: LayerGraph,
    masks: Mapping[str, Tensor],
    batches: Iterable[Tree],
    *,
    epochs: int = 6,
    lr: float = 3e-3,
    scores_axis: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup = SINGLE,
) -> None:
    """Fit each block of the pruned model to the output of the dense one's, by Adam. No labels.

    The loss is the sum over blocks of the squared error, relative to the variance of the dense
    block's output. The learning rate falls along half a cosine. Batch norms stay in evaluation
    mode. Blocks whose output is that of the dense model stay as they are.

    Args:
        module: The pruned model, in evaluation mode. Changed in place: weights (masked ones stay
            +0), biases, scales and shifts that require gradients. Buffers stay as they are.
        dense: The model before pruning, of the same names, in evaluation mode, on the same device.
        graph: Of either.
        masks: Weight to mask, True = kept, of the weight's shape.
        batches: Inputs; a step is made on each. Iterated in each pass if it has a length, so that
            it may give other inputs each time; else kept.
        epochs: Passes over the batches.
        lr: Learning rate of Adam at the start.
        scores_axis: Axis of the model's first output along which the scores of classes lie, before
            softmax: then Kullback-Leibler divergence from the dense model's is its loss. None if
            it is something else.
        seed: Orders the batches where they are kept.
        progress: Called after each pass with its number.
        group: The processes that share the samples, which must have equally many batches. All end
            up with the same weights.

    Raises:
        ValueError: If there is no batch, or a mask has no parameter of its shape.
    """
    check_masks(module, masks)
    if not isinstance(batches, Sized):
        batches = [*batches]
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("batches must hold at least one batch. Got none.")
    pair = _Pair(graph, module, dense, scores_axis)
    pair.prepare(first, group)
    named = dict(module.named_parameters())
    parameters = {n: named[n] for n in pair.inexact_parameters if named[n].requires_grad}
    if not parameters:
        return
    kept = {name: masks[name] for name in parameters if name in masks}
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    hooks = MaskHooks(parameters, kept).attach(optimizer)
    with _gradients_kept(parameters.values()), torch.enable_grad(), hooks:
        for epoch in range(epochs):
            for inputs in _shuffled(batches, generator):
                _set_gradients([*parameters.values()], pair.loss(inputs), group)
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(str(epoch + 1))


@contextmanager
def _gradients_kept(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Give parameters the gradients back that they had, however this ends."""
    before = [parameter.grad for parameter in parameters]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _shuffled(batches: Iterable[Tree], generator: torch.Generator) -> Iterable[Tree]:
    """Kept batches in random order; others put their samples into an order of their own."""
    if not isinstance(batches, list | tuple):
        return batches
    return (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())


def _set_gradients(parameters: list[nn.Parameter], loss: Tensor, group: ProcessGroup) -> None:
    """Set the gradients, the mean over all processes."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    count = group.all_reduce(torch.ones(())).item()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else group.all_reduce(gradient) / count


class _Pair:
    """The blocks of the pruned and the dense model, side by side."""

    def __init__(
        self,
        graph: LayerGraph,
        module: nn.Module,
        dense: nn.Module,
        scores_axis: int | None,
    ) -> None:
        self.program, self.blocks = graph.program, graph.blocks
        self.state, self.state_of_dense = named_state(module), named_state(dense)
        self.scores_axis, self.folds = scores_axis, graph.folds
        self.variances: dict[Node, float] = {}
        self.first = 0
        """The blocks before it have the dense model's outputs."""

    @property
    def inexact_parameters(self) -> list[str]:
        """Names of the parameters of blocks whose output is not the dense model's."""
        return [*dict.fromkeys(n for block in self.blocks[self.first :] for n in block.parameters)]

    @torch.no_grad()
    def prepare(self, inputs: Tree, group: ProcessGroup) -> None:
        """Measure the targets' variances, and which blocks are exact, on one batch."""
        wanted = self._wanted(inputs)
        given = self._run(self.state, inputs)
        self.first = len(self.blocks)
        for number, block in reversed([*enumerate(self.blocks)]):
            for node in block.targets:
                target = wanted[node].double()
                variance = target.var(correction=0).nan_to_num()
                error = (given[node] - wanted[node]).double().square().mean()
                mean = group.all_reduce(torch.stack([variance, error, torch.ones_like(error)]))
                self.variances[node] = (mean[0] / mean[2]).item() or 1.0
                if not (mean[1] / mean[2]).item() <= _ROUNDING * self.variances[node]:
                    self.first = number

    def loss(self, inputs: Tree) -> Tensor:
        """The sum of the blocks' losses on one batch."""
        wanted = self._wanted(inputs)
        started = self.program.start(inputs)
        values: dict[Node, Any] = {}
        losses = []
        for number, block in enumerate(self.blocks):
            is_last = number == len(self.blocks) - 1
            before = values if is_last else {n: _detached(v) for n, v in values.items()}
            with torch.set_grad_enabled(number >= self.first):
                before = {**started, **before}
                values |= run(
                    self.program, block.nodes, self.state, before, block.gives, self.folds
                )
            if number >= self.first:
                losses += [self._loss(node, values[node], wanted[node]) for node in block.targets]
        return torch.stack(losses).sum()

    def _loss(self, node: Node, got: Tensor, wanted: Tensor) -> Tensor:
        if self.scores_axis is not None and node is self.program.outputs[0]:
            return kl_divergence(wanted, got, self.scores_axis).mean()
        return (got - wanted).square().mean() / self.variances[node]

    @torch.no_grad()
    def _wanted(self, inputs: Tree) -> dict[Node, Any]:
        """What each block of the dense model gives."""
        return self._run(self.state_of_dense, inputs)

    def _run(self, state: Mapping[str, Tensor], inputs: Tree) -> dict[Node, Any]:
        ends = {node for block in self.blocks for node in block.gives}
        started = self.program.start(inputs)
        return run(self.program, self.program.nodes, state, started, ends, self.folds)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
