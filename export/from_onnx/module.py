"""A module of PyTorch that computes what an ONNX graph does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfac_compress.export.from_onnx.registry import Compute, Place
from mfac_compress.export.from_onnx.values import Known, Value, as_tensors
from mfac_compress.export.names import NamesInputs


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Args:
        name: Its name.
        dtype: Of its elements.
        shape: None for an open axis. None as a whole where the file does not say.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, eq=False)
class Step:
    """A node, or a node with the addition of its bias.

    Args:
        label: Operator and name, for messages.
        layer: Name of the module that computes it; None if there is none.
        compute: The function of its inputs, or makes it from that module.
        inputs: Names of values; empty for one that is left out.
        outputs: Names of values.
        last: Values that no later step reads.
    """

    label: str
    layer: str | None
    compute: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


class NodeError(ValueError):
    """A node that fails; the message names it."""


class OnnxModule(NamesInputs, nn.Module):
    """The nodes of a graph, run one after the other.

    Weights, biases and norms are parameters of layers; other constants are frozen parameters or
    buffers. Returns the graph's output, or a dict of its outputs by name where it has several.

    Attributes:
        inputs: The graph's.
        input_names: Their names.
        outputs: Names of the outputs that it computes.
        reasons: Name of a parameter to why it cannot be pruned, where its layer does not say.
        place: Where it is, for what computes its steps.
    """

    def __init__(self, inputs: Sequence[Input], outputs: Sequence[str], alone: bool) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.input_names = tuple(each.name for each in inputs)
        self.reasons: dict[str, str] = {}
        self._alone = alone
        self.place = Place()
        self._steps: tuple[Step, ...] = ()
        self._known: dict[str, Known] = {}
        self._tensors: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((each.device for each in self.parameters()), torch.device("cpu"))

    def plan(
        self, steps: Sequence[Step], known: Mapping[str, Known], tensors: Mapping[str, str]
    ) -> None:
        """Say what it computes.

        Args:
            steps: In their order.
            known: Constants by the names of values.
            tensors: Name of a value to that of the parameter or buffer which holds it.
        """
        self._steps, self._known, self._tensors = tuple(steps), dict(known), dict(tensors)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        values = self._run(self._given(args, kwargs))
        found = {name: self._tensor(values[name]) for name in self.outputs}
        return found[self.outputs[0]] if self._alone else found

    def intermediate(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """What all nodes compute, by the names of values, in their order."""
        values = self._run(self._given(args, kwargs), keep=True)
        computed = (name for step in self._steps for name in step.outputs if name in values)
        return {name: self._tensor(values[name]) for name in computed}

    def label(self, value: str) -> str:
        """Operator and name of the node that computes a value."""
        return next(step.label for step in self._steps if value in step.outputs)

    def _given(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Value]:
        names = self.input_names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(names) or given.keys() != {*names}:
            got = f"{len(args)} by position" if args else ", ".join(kwargs)
            raise ValueError(f"the file takes the inputs {', '.join(names)}, and got {got}")
        for each in self.inputs:
            if given[each.name].dtype != each.dtype:
                raise ValueError(
                    f"the file's input {each.name} is {_short(each.dtype)}, and got "
                    f"{_short(given[each.name].dtype)}"
                )
        return given

    def _run(self, values: dict[str, Value], keep: bool = False) -> dict[str, Value]:
        self.place.device = self.device
        values = {"": None, **self._known, **values}
        for name, holder in self._tensors.items():
            owner, _, last = holder.rpartition(".")
            values[name] = getattr(self.get_submodule(owner), last)
        for step in self._steps:
            compute: Compute = step.compute
            given: list[Value] = [values[name] for name in step.inputs]
            try:
                if step.layer is not None:
                    compute = compute(self.get_submodule(step.layer))
                    given = as_tensors(given, self.device)
                found = compute(*given)
            except Exception as error:
                if isinstance(error, NodeError) or type(error).__module__.startswith("torch."):
                    raise
                raise NodeError(f"{step.label}: {error}") from error
            parts = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.outputs, parts, strict=False))
            for name in () if keep else step.last:
                del values[name]
        return values

    def _tensor(self, value: Value) -> Tensor:
        return value.tensor(self.device) if isinstance(value, Known) else value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
