"""Batches of samples whose inputs and targets are trees of tensors.

A tree is one tensor, a tuple of trees, or a dict of trees by name. The first dimension of every
tensor in a batch counts its samples. A single tensor is the shortest tree, so code that knows only
tensors and code that knows trees call the same functions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Tree = Tensor | tuple["Tree", ...] | Mapping[str, "Tree"]


class Batch(NamedTuple):
    """Samples that go through a model together.

    Args:
        inputs: What the model is called with, as :func:`call` does.
        targets: What its outputs are compared with.
    """

    inputs: Tree
    targets: Tree

    @property
    def size(self) -> int:
        """Number of samples."""
        return size(self.inputs)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device."""
        return map_tensors(lambda tensor: tensor.to(device), self)

    def rows(self, which: slice | Tensor) -> "Batch":
        """The samples at the given positions."""
        return map_tensors(lambda tensor: tensor[which], self)


def call(model: nn.Module, inputs: Tree) -> Any:
    """Call a model: a dict by keyword, a tuple by position, a tensor by itself.

    Example:
        >>> pick = nn.Bilinear(2, 3, 1)
        >>> call(pick, (torch.ones(4, 2), torch.ones(4, 3))).shape
        torch.Size([4, 1])
    """
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def arguments(inputs: Tree) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
    """Positional and keyword arguments of :func:`call`."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class FlatModel(nn.Module):
    """A model as ``forward(*tensors)`` that returns its outputs as a tuple, as tracers want it.

    Inputs and outputs of a graph then have the order of the trees, whatever their form.

    Args:
        model: Called as :func:`call` does.
        example: Inputs of the form that it takes.
        leaves: What to return of the model's outputs.
    """

    def __init__(
        self, model: nn.Module, example: Tree, leaves: Callable[[Any], tuple[Tensor, ...]]
    ) -> None:
        super().__init__()
        self.training = False
        self.wrapped = model
        self._form = map_tensors(lambda _: None, example)
        self._leaves = leaves

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        inputs = map_tensors(lambda _: next(remaining), self._form)
        return self._leaves(call(self.wrapped, inputs))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of a model into evaluation mode, then restore the mode of each.

    The flags are set directly, because ``eval()`` and ``train()`` raise on the module of an
    exported program, whose mode is fixed in its graph. Encoders run PyTorch's ordinary path, which
    a traced graph has too: the fast one returns zeros for padding.

    Args:
        model: Changed while the context is open, and restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to each tensor of a tree, and to those at its place in further trees.

    Args:
        function: Takes one tensor of each tree.
        tree: Gives the form of the result.
        others: Trees of the same form.

    Returns:
        A tree of the same form with the function's results.

    Raises:
        ValueError: If the forms differ.

    Example:
        >>> map_tensors(lambda a, b: (a + b).tolist(), {"x": torch.ones(2)}, {"x": torch.ones(2)})
        {'x': [2.0, 2.0]}
    """
    if isinstance(tree, Mapping):
        _check_form(all(isinstance(o, Mapping) and o.keys() == tree.keys() for o in others))
        return {k: map_tensors(function, tree[k], *(o[k] for o in others)) for k in tree}
    if isinstance(tree, tuple):
        _check_form(all(isinstance(o, tuple) and len(o) == len(tree) for o in others))
        parts = (map_tensors(function, *each) for each in zip(tree, *others, strict=True))
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    _check_form(not any(isinstance(o, Mapping | tuple) for o in others))
    return function(tree, *others)


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each tensor of a tree with its place: ``"encoder.mask"``, ``"0"``; ``""`` if alone.

    Example:
        >>> tree = {"ids": torch.ones(1), "pair": (torch.ones(1), torch.ones(1))}
        >>> [name for name, _ in named_tensors(tree)]
        ['ids', 'pair.0', 'pair.1']
    """
    if isinstance(tree, Mapping | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, part in items:
            yield from named_tensors(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def size(tree: Tree) -> int:
    """Number of samples in a tree: the length of its tensors' first dimension.

    Raises:
        ValueError: If it has no tensor, one without dimensions, or such of differing lengths.
    """
    lengths = {name: len(t) if t.ndim else None for name, t in named_tensors(tree)}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            "All tensors of a batch must have the same number of samples in their first "
            f"dimension. Got {lengths or 'no tensor'}."
        )
    return next(iter(lengths.values()))


def channels_last(tensor: Tensor) -> Tensor:
    """Images with their channels side by side, as convolutions are fastest: the same values."""
    is_image = tensor.ndim == 4 and tensor.is_floating_point()
    return tensor.contiguous(memory_format=torch.channels_last) if is_image else tensor


def stack(trees: list[Any]) -> Any:
    """One tree of tensors ``[k, ...]`` from k trees of one form and shape."""
    return map_tensors(lambda *tensors: torch.stack(tensors), *trees)


def concatenate(trees: list[Any]) -> Any:
    """One batch's tree from those of several batches, joined along the first dimension."""
    return map_tensors(lambda *tensors: torch.cat(tensors), *trees)


def _check_form(same: bool) -> None:
    if not same:
        raise ValueError(
            "Trees must have the same form: the same keys, lengths and nesting. Got trees that "
            "differ."
        )
