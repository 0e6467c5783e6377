"""Fake quantization: a model computes with the values that 8 bits hold, and is trained in float.

A layer's input x becomes s (clip(round(x / s) + z, 0, 255) - z), each output's weights w become
t round(w / t) with t = max |w| / levels, and gradients pass as if nothing had been rounded (the
straight-through estimator), but for inputs that are clipped. A factor that a batch norm is folded
into an output's weights with, of either sign, multiplies t as well: the steps stay what they are.

Nothing of the model changes: while the mode is on, the operators that multiply a
weight with an input are called with rounded tensors, whoever calls them.

References:
    Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, section 3.
    Bengio, Leonard, Courville (2013), Estimating or Propagating Gradients Through Stochastic
    Neurons, arXiv:1308.3432.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Kept = tuple[tuple[int, ...] | None, ...]
"""Along each axis of a weight the places that count, None for all; empty for the whole weight."""

_TINY = torch.finfo(torch.float32).tiny
_HIGHEST = 255
"""Of an input's steps, which are uint8."""

aten = torch.ops.aten
_PRODUCTS: dict[Callable[..., Any], tuple[int, int, int]] = {
    **dict.fromkeys((F.linear, aten.linear.default), (0, 1, 0)),
    **dict.fromkeys((F.conv1d, aten.conv1d.default, aten.conv1d.padding), (0, 1, 0)),
    **dict.fromkeys((F.conv2d, aten.conv2d.default, aten.conv2d.padding), (0, 1, 0)),
    **dict.fromkeys((F.conv3d, aten.conv3d.default, aten.conv3d.padding), (0, 1, 0)),
    **dict.fromkeys((torch.matmul, torch.mm, aten.matmul.default, aten.mm.default), (0, 1, 1)),
    **dict.fromkeys((torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__), (0, 1, 1)),
    **dict.fromkeys((torch.addmm, aten.addmm.default), (1, 2, 1)),
}
"""Of an operator: the positions of input and weight, and the axis of the outputs in the weight."""


@dataclass(frozen=True)
class FakeQuantisedLayer:
    """How one call of a layer rounds.

    Args:
        weight: Name of the parameter.
        scale: What a step of the input stands for.
        zero_point: The step of the input that stands for 0, in 0..255.
        axis: Axis of the outputs in the weight as ``kept`` has it.
        kept: What of the weight counts for its scales.
    """

    weight: str
    scale: float
    zero_point: int
    axis: int = 0
    kept: Kept = ()


class FakeQuantisation(TorchFunctionMode):
    """Lets a model's layers compute with rounded inputs and weights, in a ``with`` block.

    Args:
        module: The model. Not changed.
        layers: Its layers in the order in which they are called; one that is called several times
            comes as often. All others compute in float.
        levels: Highest step of a weight, whose lowest one is its negative.

    Raises:
        ValueError: If a weight is no parameter of the model.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([[1.0, 1.0], [0.3, 1.0]]))
        >>> with FakeQuantisation(net, [FakeQuantisedLayer("weight", 0.5, 0)], levels=4):
        ...     net(torch.tensor([[0.9, 0.5], [-1.0, 0.5]])).tolist()
        [[1.5, 0.75], [0.5, 0.5]]
    """

    def __init__(
        self, module: nn.Module, layers: Iterable[FakeQuantisedLayer], *, levels: int
    ) -> None:
        super().__init__()
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._module, self._levels = module, levels
        self._layers: dict[int, list[FakeQuantisedLayer]] = {}
        for layer in layers:
            if layer.weight not in parameters:
                raise ValueError(
                    "Each weight in 8 bits must be a parameter of the model. Got "
                    f"{layer.weight}, which is computed from others or a constant."
                )
            self._layers.setdefault(id(parameters[layer.weight]), []).append(layer)
        self._calls: Counter[int] = Counter()
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> "FakeQuantisation":
        self._hook = self._module.register_forward_pre_hook(lambda *_: self._calls.clear())
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._hook.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Round input and weight of an operator that multiplies them."""
        del types
        kwargs = kwargs or {}
        source, place, axis = _PRODUCTS.get(func, (0, 0, 0))
        if not place or len(args) <= place or id(args[place]) not in self._layers:
            return func(*args, **kwargs)
        weight, given = args[place], list(args)
        layer = self._next_call(weight)
        given[source] = torch.fake_quantize_per_tensor_affine(
            args[source], layer.scale, layer.zero_point, 0, _HIGHEST
        )
        given[place] = fake_quantised_weight(weight, layer, axis, self._levels)
        return func(*given, **kwargs)

    def check_calls(self) -> None:
        """Check, after a call of the model in the block, that each layer was rounded as it should.

        Raises:
            ValueError: If a weight was multiplied by other operators than those that can be
                rounded, or another number of times.
        """
        for key, layers in self._layers.items():
            if self._calls[key] != len(layers):
                raise _wrong_calls(layers, self._calls[key])

    def _next_call(self, weight: Tensor) -> FakeQuantisedLayer:
        layers, number = self._layers[id(weight)], self._calls[id(weight)]
        if number >= len(layers):
            raise _wrong_calls(layers, number + 1)
        self._calls[id(weight)] += 1
        return layers[number]


def fake_quantised_weight(
    weight: Tensor, layer: FakeQuantisedLayer, axis: int, levels: int
) -> Tensor:
    """Round a weight to its steps: symmetric, so that 0 stays 0; gradients pass straight through.

    Args:
        weight: Float32.
        layer: Which places count.
        axis: Axis of the outputs.
        levels: Highest step.
    Returns:
        Of the weight's shape.
    """
    scale = weight_scale(weight, layer, axis, levels)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, axis, -levels, levels)


@torch.no_grad()
def weight_scale(weight: Tensor, layer: FakeQuantisedLayer, axis: int, levels: int) -> Tensor:
    """What a step of each output stands for: max |w| / levels, to the last bit as in ONNX Runtime.

    Args:
        weight: Float32.
        layer: Which places count.
        axis: Axis of the outputs.
        levels: Highest step.
    Returns:
        Float32 ``[outputs]``. 1 where all is 0.
    """
    sizes = weight.abs()
    kept = layer.kept if axis == layer.axis else layer.kept[::-1]
    for dim, places in enumerate(kept):
        if places is not None and dim != axis:
            sizes = sizes.index_select(dim, torch.tensor(places, device=weight.device))
    peaks = sizes.amax([dim for dim in range(weight.ndim) if dim != axis])
    scale = peaks.double() / levels
    return torch.where(scale < _TINY, 1.0, scale).float()


def _wrong_calls(layers: list[FakeQuantisedLayer], calls: int) -> ValueError:
    return ValueError(
        "Each layer in 8 bits must be one call of linear, conv or matmul with its weight as it is, "
        f"as often as the file has it. Of {layers[0].weight}, the file has {len(layers)}, and the "
        f"model makes {calls}."
    )
