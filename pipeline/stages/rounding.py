"""Rounding of weights in 8 bits such that each layer's outputs stay what they were.

The solver rounds a layer's weights one after the other, and those that are not rounded yet make up
for the error, by the second moments of the layer's inputs on calibration samples. What it found is
taken where the outputs are nearer to those in float than with the nearest steps, on held-out ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from mfac_compress.export.layer_inputs import LayerProduct, layer_inputs, layer_products
from mfac_compress.export.names import Feeds
from mfac_compress.export.quantised_weights import SignedWeight
from mfac_compress.mfac.layerwise.moments import input_moments
from mfac_compress.mfac.layerwise.operators import Convolution, Linear, Operator, choose_positions
from mfac_compress.mfac.layerwise.rounding import round_to_grid
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.pipeline.stages.divergence import is_nearer, reported

_POSITIONS = 64
"""Random positions of each sample at which a layer's input is looked at: pixels or tokens."""
_RIDGE = 1e-2
"""As in GPTQ, of the mean square of a layer's inputs."""
_MOST_BYTES = 1 << 29
"""Of second moments that are held at once; a layer that needs more is rounded to nearest. The
solver takes several times as much."""

Batches = Callable[[], Iterable[Feeds]]


@dataclass(frozen=True)
class LayerRounding:
    """How the weights of a layer came into 8 bits."""

    weight: str
    """Name of the weight in the float file."""
    solved: bool
    """Whether the solver's steps were better than the nearest ones."""
    nearest_error: float | None
    """Squared error of the layer's outputs with the nearest steps, as a share of the outputs'
    square, on held-out calibration samples with inputs in float. null: not finite, or not
    measured."""
    solved_error: float | None
    """The same with the solver's steps."""
    reason: str | None
    """Why the solver could not round it. null: it could."""


@dataclass(frozen=True)
class Rounding:
    """What the solver did for the weights in 8 bits."""

    nearest: float | None
    """Divergence of the file with all weights rounded to nearest. null: not finite."""
    solved: float | None
    """The same with the solver's steps where they are better for the layer."""
    kept: bool
    """Whether these are in the file: only if they bring the model's outputs nearer."""
    layers: tuple[LayerRounding, ...]
    """In the order of the file."""


def round_layers(
    model: onnx.ModelProto,
    nearest: Mapping[str, SignedWeight],
    samples: Batches,
    held_out: Batches,
    generator: torch.Generator,
    scratch: Path,
    step: Callable[[str, int, int], None],
) -> tuple[dict[str, np.ndarray], tuple[LayerRounding, ...]]:
    """Round the weights of a model's layers.

    Args:
        model: Float.
        nearest: Weights in 8 bits, rounded to nearest: what the solver has to beat, and its scales.
        samples: Gives batches, by which weights are rounded.
        held_out: Gives others, by which is chosen.
        generator: Draws positions.
        scratch: Folder for temporary files, of which none stays.
        step: Shows what is at work, how much of it is done, and how much there is.
    Returns:
        The solver's steps for each weight that has better ones, int8; how each layer was rounded.
    """
    layers, reasons = _layers(model, nearest)
    steps: dict[str, np.ndarray] = {}
    found = {name: LayerRounding(name, False, None, None, reason) for name, reason in reasons}
    for some in _portions(layers):
        H = _second_moments(model, some, samples(), generator, scratch)
        solved = {}
        for one in some:
            step(f"rounding of {one.weight}", len(found) + len(solved) + 1, len(nearest))
            solved[one.weight] = one.solve(H.pop(one.weight))
        H = _second_moments(model, some, held_out(), generator, scratch)
        for one in some:
            found[one.weight], better = one.choose(solved[one.weight], H.pop(one.weight))
            if better is not None:
                steps[one.weight] = better
    return steps, tuple(found[name] for name in nearest)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A weight and the products that read it.

    Args:
        weight: Its name.
        products: Nearly always one.
        nearest: Rounded to nearest.
    """

    weight: str
    products: tuple[LayerProduct, ...]
    nearest: SignedWeight

    @property
    def operator(self) -> Operator:
        """How the first product multiplies."""
        return _operator(self.products[0])

    @property
    def bytes(self) -> int:
        """Of its second moments."""
        return 8 * self.operator.groups * self.operator.columns**2

    @property
    def matrices(self) -> Tensor:
        """W, float64 ``[g, r, k]``."""
        return _matrices(self.products[0], self.products[0].values)

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest step and the highest one: the range that the nearest ones use."""
        most = int(np.abs(self.nearest.steps.astype(int)).max())
        return -most, most

    @property
    def scale(self) -> Tensor:
        """Float64 ``[g, r]``."""
        scale = torch.from_numpy(self.nearest.scale.astype(np.float64))
        rows = (self.operator.groups, self.operator.rows)
        return scale.expand(rows) if len(scale) == 1 else scale.view(rows)

    def solve(self, H: Tensor) -> np.ndarray | str:
        """The solver's steps, or why there are none. H: ``[g, k, k]``."""
        W, scale = self.matrices, self.scale
        if not (H.isfinite().all() and W.isfinite().all()):
            return "its inputs and weights must be finite"
        try:
            Z = round_to_grid(W, H, W != 0, scale, levels=self.levels, ridge=_RIDGE)
        except (PrecisionError, ValueError) as error:
            return str(error)
        steps = (Z / scale.unsqueeze(-1)).round_().to(torch.int8)
        return self.products[0].tensor(steps.numpy())

    def choose(
        self, solved: np.ndarray | str, H: Tensor
    ) -> tuple[LayerRounding, np.ndarray | None]:
        """Compare with the nearest steps; the solver's steps only if these are better."""
        nearest_error = self._error(self.nearest.steps, H)
        if isinstance(solved, str):
            return LayerRounding(self.weight, False, reported(nearest_error), None, solved), None
        error = self._error(solved, H)
        better = is_nearer(error, nearest_error)
        errors = reported(nearest_error), reported(error)
        return LayerRounding(self.weight, better, *errors, None), solved if better else None

    def _error(self, steps: np.ndarray, H: Tensor) -> float:
        """Squared error of the outputs, as a share of their square."""
        W = self.matrices
        difference = _matrices(self.products[0], steps) * self.scale.unsqueeze(-1) - W
        return (_square(difference, H) / _square(W, H)).item()


def _square(W: Tensor, H: Tensor) -> Tensor:
    """Σ ‖W x‖² = tr W H Wᵀ. ``[g, r, k]``, ``[g, k, k]``."""
    return (torch.bmm(W, H) * W).sum()


def _layers(
    model: onnx.ModelProto, nearest: Mapping[str, SignedWeight]
) -> tuple[list[_Layer], list[tuple[str, str]]]:
    """The layers that the solver can round, and the others with the reasons."""
    readers: dict[str, list[LayerProduct | str]] = {}
    for weight, product in layer_products(model):
        readers.setdefault(weight, []).append(product)
    layers, reasons = [], []
    for name, rounded in nearest.items():
        products = readers.get(name, ["no layer reads it"])
        reason = next((one for one in products if isinstance(one, str)), None)
        layer = _Layer(name, tuple(p for p in products if isinstance(p, LayerProduct)), rounded)
        reason = reason or _unfit(layer)
        if reason:
            reasons.append((name, reason))
        else:
            layers.append(layer)
    return layers, reasons


def _unfit(layer: _Layer) -> str | None:
    """Why the solver cannot round a layer."""
    if len({one.outputs_first for one in layer.products}) > 1:
        return "layers read it with different outputs"
    if len({one.groups for one in layer.products}) > 1:
        return "layers read it with different groups"
    if layer.bytes > _MOST_BYTES:
        columns = layer.operator.columns
        return f"the second moments of its {columns:,} inputs exceed {_MOST_BYTES >> 20} MiB"
    return None


def _portions(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Layers in turn, as many at a time as memory may hold."""
    some: list[_Layer] = []
    for layer in layers:
        if some and sum(one.bytes for one in some) + layer.bytes > _MOST_BYTES:
            yield some
            some = []
        some.append(layer)
    if some:
        yield some


def _second_moments(
    model: onnx.ModelProto,
    layers: Sequence[_Layer],
    batches: Iterable[Feeds],
    generator: torch.Generator,
    scratch: Path,
) -> dict[str, Tensor]:
    """H = Σ x xᵀ of the inputs of layers, by their weights. ``[g, k, k]``."""
    sums: dict[str, Tensor] = {}
    products = [product for layer in layers for product in layer.products]
    names = [*dict.fromkeys(product.input for product in products)]
    for batch, inputs in layer_inputs(model, names, batches, scratch):
        given = {name: torch.from_numpy(array) for name, array in batch.items()}
        for product in products:
            H = _of_batch(product, torch.from_numpy(inputs[product.input]), given, generator)
            sums[product.weight] = sums[product.weight] + H if product.weight in sums else H
    return sums


def _of_batch(
    product: LayerProduct, x: Tensor, given: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    operator = _operator(product)
    y = torch.empty(_output_shape(product, operator, x.shape), device="meta")
    chosen = choose_positions(operator, y, given, _POSITIONS, generator)
    return input_moments(operator, x, y, chosen).H


def _matrices(product: LayerProduct, weight: np.ndarray) -> Tensor:
    """``[g, r, k]`` in float64."""
    return torch.from_numpy(product.matrices(weight).astype(np.float64))


def _operator(product: LayerProduct) -> Operator:
    g, r, k = product.matrices(product.values).shape
    window = product.window
    if window is None:
        return Linear(r, k)
    kernel = product.values.shape[2:]
    return Convolution(
        groups=g,
        rows=r,
        channels=product.values.shape[1],
        kernel=kernel,
        stride=window.strides,
        dilation=window.dilations,
        before=window.pads[: len(kernel)],
        spread=(1,) * len(kernel),
    )


def _output_shape(product: LayerProduct, operator: Operator, x: Sequence[int]) -> list[int]:
    window = product.window
    if not isinstance(operator, Convolution) or window is None:
        return [*x[:-1], operator.rows]
    axes = len(operator.kernel)
    padded = [
        size + before + after
        for size, before, after in zip(x[2:], window.pads[:axes], window.pads[axes:], strict=True)
    ]
    each = zip(padded, operator.kernel, operator.stride, operator.dilation, strict=True)
    lengths = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in each]
    return [x[0], operator.groups * operator.rows, *lengths]
