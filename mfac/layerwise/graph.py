"""A model as a graph of operators: its layers, and the blocks that it consists of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfac_compress.mfac.batch import Tree, concatenate, evaluating, map_tensors, size
from mfac_compress.mfac.layerwise.cuts import Block, find_blocks
from mfac_compress.mfac.layerwise.find import find_layers
from mfac_compress.mfac.layerwise.followers import shortcuts_first
from mfac_compress.mfac.layerwise.layers import Layer
from mfac_compress.mfac.layerwise.operators import Convolution
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import (
    Program,
    named_state,
    output_tensors,
    trace,
)

# Largest difference of the graph's outputs from the model's, relative to their norm.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A model's operators in evaluation mode, read once; runs on any module of the same names.

    Args:
        program: The operators in the order in which they run here: shortcuts before the branches
            that they go round.
        layers: Parameter name to layer, in the order in which the model runs them.
        reasons: Parameter name to the reason why it has no layer.
        blocks: Successive parts of the model, each with one tensor in and one out. Each has the
            names of its ``parameters``.
    """

    program: Program
    layers: Mapping[str, Layer]
    reasons: Mapping[str, str]
    blocks: tuple[Block, ...]

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example: Tree,
        open_axes: Mapping[str, Iterable[int]] | None = None,
    ) -> "LayerGraph":
        """Read a model's graph with ``torch.export``.

        Args:
            model: Any module, also that of an exported program. Not changed. Traced in evaluation
                mode.
            example: Inputs, each ``[n, ...]``, on the model's device.
            open_axes: Name of an input (see :func:`~mfac_compress.mfac.batch.named_tensors`) to
                its axes, beside the first, whose length may differ from the example's.

        Raises:
            ValueError: If the model cannot be traced, or fixes the number of samples.
        """
        program = trace(model, example, open_axes)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        layers, _ = find_layers(program, shapes)
        program = shortcuts_first(program, layers.values())
        layers, reasons = find_layers(program, shapes)
        graph = cls(program, layers, reasons, find_blocks(program, shapes))
        graph._check(model, example)
        return graph

    @property
    def folds(self) -> dict[Node, Node]:
        """Batch norms, and the convolution before each, which can be run as one convolution."""
        found = {}
        for layer in self.layers.values():
            use = layer.uses[0]
            is_next = layer.norm is not None and use.end.args[0] is use.node
            if (
                is_next
                and not use.node.kwargs
                and isinstance(use.operator, Convolution)
                and not use.operator.transposed
            ):
                found[use.end] = use.node
        return found

    def run(self, module: nn.Module, inputs: Tree) -> tuple[Tensor, ...]:
        """The outputs of a module of the same names, in the order of the graph's."""
        program = self.program
        values = run(program, program.nodes, named_state(module), program.start(inputs))
        return tuple(values[node] for node in program.outputs)

    @torch.no_grad()
    def _check(self, model: nn.Module, example: Tree) -> None:
        """Check that the graph computes what the model does, on one more sample than it was traced.

        Raises:
            ValueError: If not.
        """
        one = map_tensors(lambda tensor: tensor[:1], example)
        inputs = concatenate([example, example, one])
        try:
            with evaluating(model), sdpa_kernel(SDPBackend.MATH):
                expected = output_tensors(model, inputs)
            outputs = self.run(model, inputs)
        except Exception as error:
            # A length that is fixed fails in whatever operator meets another.
            raise ValueError(
                f"The model must take any number of samples. Traced with {size(example)}, it fails "
                f"with {size(inputs)}: {error}. Replace fixed lengths in its forward, as in "
                "x.view(32, -1), and len(x) by x.shape[0]."
            ) from error
        for got, wanted in zip(outputs, expected, strict=True):
            if got.shape != wanted.shape or not _is_close(got, wanted):
                raise ValueError(
                    "The graph must compute what the model computes. Got another output of "
                    f"{list(got.shape)} for {size(inputs)} samples. The forward of the model must "
                    "be made of tensor operators, and neither random nor dependent on values of "
                    "the inputs."
                )


def _is_close(got: Tensor, wanted: Tensor) -> bool:
    got, wanted = got.double().nan_to_num(), wanted.double().nan_to_num()
    return bool((got - wanted).norm() <= _TOLERANCE * wanted.norm())
