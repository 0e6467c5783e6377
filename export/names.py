"""Names of a graph's inputs and outputs, and arrays by these names."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree, named_tensors

Feeds = Mapping[str, np.ndarray]


class NamesInputs:
    """A module whose forward takes any arguments, and that names them itself.

    Attributes:
        input_names: Of its arguments, in their order.
    """

    input_names: tuple[str, ...]


def input_names(model: nn.Module, inputs: Tree, default: str) -> list[str]:
    """Name each tensor of a model's inputs, in their order.

    Args:
        model: Its forward's parameters name the parts of a tuple.
        inputs: A dict's keys are the names. Names of nested parts are joined by dots.
        default: Name of a lone tensor; numbered for parts of a tuple beyond forward's parameters.

    Example:
        >>> pair = (np.ones(3), {"ids": np.ones(3), "mask": np.ones(3)})
        >>> input_names(nn.Bilinear(2, 2, 1), pair, "input")
        ['input1', 'input2.ids', 'input2.mask']
    """
    if isinstance(model, NamesInputs):
        default = model.input_names[0]
    if not isinstance(inputs, tuple):
        return [name or default for name, _ in named_tensors(inputs)]
    known = _positional(model)[: len(inputs)]
    more = [f"{default}_{position}" for position in range(len(known), len(inputs))]
    parts = dict(zip([*known, *more], inputs, strict=True))
    return [name for name, _ in named_tensors(parts)]


def output_names(outputs: Tree, default: str) -> list[str]:
    """Name each tensor of a model's outputs, in their order.

    Args:
        outputs: A dict's keys are the names. Names of nested parts are joined by dots.
        default: Name of a lone tensor; numbered for the parts of a tuple.

    Example:
        >>> output_names((np.ones(3), np.ones(3)), "output")
        ['output_0', 'output_1']
    """
    if isinstance(outputs, tuple):
        outputs = {f"{default}_{position}": part for position, part in enumerate(outputs)}
    return [name or default for name, _ in named_tensors(outputs)]


def feeds(inputs: Tree, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by the names of a graph's inputs.

    Args:
        inputs: A tree of tensors or arrays, of the form with which the graph was made.
        names: Of the graph's inputs, in their order.
    Raises:
        ValueError: If the tree has other tensors than the graph has inputs.
    """
    if isinstance(inputs, tuple) and len(inputs) == len(names):
        found = dict(zip(names, (part for _, part in named_tensors(inputs)), strict=False))
        fits = len(found) == sum(1 for _ in named_tensors(inputs))
    elif isinstance(inputs, tuple):
        heads = dict.fromkeys(name.partition(".")[0] for name in names)
        found = dict(named_tensors(dict(zip(heads, inputs, strict=False))))
        fits = len(heads) == len(inputs)
    else:
        found = {name or names[0]: tensor for name, tensor in named_tensors(inputs)}
        fits = True
    if not fits or found.keys() != set(names):
        given = [name for name, _ in named_tensors(inputs)]
        raise ValueError(
            f"Inputs must be those of the ONNX file: {', '.join(names)}. Got "
            f"{', '.join(given) if any(given) else 'one tensor'}. Export with an example of the "
            "data's form."
        )
    return {name: _array(found[name]) for name in names}


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def _positional(model: nn.Module) -> list[str]:
    if isinstance(model, NamesInputs):
        return [*model.input_names]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]
