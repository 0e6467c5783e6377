"""Fit the parameters of one block after the other to the dense block's output.

Where :mod:`~mfac_compress.mfac.layerwise.least_squares` solves one linear layer at a time, this
fits all layers of a block together, through what lies between them, by a few hundred steps of Adam.

References:
    Li et al. (2021), BRECQ: pushing the limit of post-training quantization by block
        reconstruction, section 3.2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.activations import Chain, Ends, Kept, Recomputed, Values
from mfac_compress.mfac.layerwise.cuts import Block
from mfac_compress.mfac.layerwise.graph import LayerGraph
from mfac_compress.mfac.layerwise.least_squares import Progress, check_masks
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import Program, named_state
from mfac_compress.mfac.masking import MaskHooks
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
    """Fit each block of the pruned model to the output of the dense one's, by Adam. No labels.

    A block's input comes from the pruned model, whose blocks before it are fitted already. The loss
    is the mean squared error relative to the variance of the dense block's output; the learning
    rate falls along half a cosine. Batch norms stay in evaluation mode. A block whose output is the
    dense one's already, or whose error is not lower after the fit, stays as it was.

    Args:
        module: The pruned model, in evaluation mode. Changed in place: weights (masked ones stay
            +0), biases, scales and shifts that require gradients. Buffers stay as they are, and so
            does a parameter that several blocks use.
        dense: The model before pruning, of the same names, in evaluation mode, on the same device.
        graph: Of either.
        masks: Weight to mask, True = kept, of the weight's shape.
        batches: Inputs; a step is made on each. Iterated once if ``fixed``, else once for each
            block and pass, and before and after: they may be augmented anew each time.
        epochs: Passes over the batches for each block.
        lr: Learning rate of Adam at the start of each block.
        fixed: The batches are the same in every pass, so the activations at the block's two ends
            are kept rather than computed anew from the inputs.
        together: Number of successive blocks that are fitted as one.
        storage: Floating-point type in which activations are kept.
        seed: Orders the batches.
        progress: Called after each block with the name of its last parameter.
        group: The processes that share the samples, which must have equally many batches. All end
            up with the same weights.

    Raises:
        ValueError: If there is no batch, or a mask has no parameter of its shape.
    """
    check_masks(module, masks)
    program, blocks = graph.program, graph.joined_blocks(together)
    chain = Chain(program, blocks, named_state(module), named_state(dense))
    ends = Kept(chain, batches, storage) if fixed else Recomputed(chain, batches)
    generator = torch.Generator().manual_seed(seed)
    for number, block in enumerate(blocks):
        parameters = _trained(module, blocks, block)
        ends.enter(number)
        if parameters and epochs:
            fit = _Fit(program, block, module, parameters, masks, group)
            fit.improve(ends, epochs, lr, generator)
        ends.leave()
        if progress is not None and block.parameters:
            progress(block.parameters[-1])


def _trained(module: nn.Module, blocks: Sequence[Block], block: Block) -> dict[str, nn.Parameter]:
    """The parameters of a block that are free and of no other block."""
    elsewhere = {name for other in blocks if other is not block for name in other.parameters}
    parameters = dict(module.named_parameters())
    return {
        name: parameters[name]
        for name in block.parameters
        if name not in elsewhere and parameters[name].requires_grad
    }


class _Fit:
    """The fit of one block."""

    def __init__(
        self,
        program: Program,
        block: Block,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        group: ProcessGroup,
    ) -> None:
        self.program, self.block, self.group = program, block, group
        self.state = named_state(module)
        self.parameters = parameters
        self.masks = {name: masks[name] for name in parameters if name in masks}
        self.variances: dict[Node, float] = {}

    def improve(self, ends: Ends, epochs: int, lr: float, generator: torch.Generator) -> None:
        """Train the block, and undo it if its error has not fallen."""
        before = self.error(ends)
        if not before > 0:
            return
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.train(ends, epochs, lr, generator)
        if not self.error(ends) < before:
            for name, parameter in self.parameters.items():
                parameter.detach().copy_(kept[name])

    def loss(self, values: Values, wanted: Values) -> Tensor:
        """Sum over the block's outputs of the squared error relative to their variance."""
        got = run(self.program, self.block.nodes, self.state, values, self.block.targets)
        errors = [
            (got[node] - wanted[node]).square().mean() / self.variances[node]
            for node in self.block.targets
        ]
        return torch.stack(errors).sum()

    @torch.no_grad()
    def error(self, ends: Ends) -> float:
        """The mean loss over all processes' batches."""
        losses = []
        for values, wanted in ends.pairs():
            if not self.variances:
                self.variances = self._variances(wanted)
            losses.append(self.loss(values, wanted).double())
        if not losses:
            raise ValueError("batches must hold at least one batch. Got none.")
        total = torch.stack(losses).sum()
        both = self.group.all_reduce(torch.stack([total, total.new_tensor(len(losses))]))
        return (both[0] / both[1]).item()

    def _variances(self, wanted: Values) -> dict[Node, float]:
        """Of the first batch's targets: only the order of magnitude matters."""
        result = {}
        for node in self.block.targets:
            variance = wanted[node].double().var(correction=0).nan_to_num()
            mean = self.group.all_reduce(torch.stack([variance, torch.ones_like(variance)]))
            result[node] = (mean[0] / mean[1]).item() or 1.0
        return result

    def train(self, ends: Ends, epochs: int, lr: float, generator: torch.Generator) -> None:
        """Make one step on each batch in each of several passes."""
        parameters = [*self.parameters.values()]
        optimizer = torch.optim.Adam(parameters, lr=lr)
        steps = epochs * ends.count
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
        )
        before = [parameter.grad for parameter in parameters]
        with torch.enable_grad(), MaskHooks(self.parameters, self.masks).attach(optimizer):
            for _ in range(epochs):
                for values, wanted in ends.pairs(generator):
                    gradients = torch.autograd.grad(
                        self.loss(values, wanted), parameters, allow_unused=True
                    )
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.grad = self._mean(gradient)
                    optimizer.step()
                    schedule.step()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient

    def _mean(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None or self.group is SINGLE:
            return gradient
        return self.group.all_reduce(gradient) / self.group.all_reduce(gradient.new_ones(()))
