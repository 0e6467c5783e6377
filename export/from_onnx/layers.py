"""The nodes whose weights are stored in the file, as layers of PyTorch with parameters.

A stored tensor becomes a parameter of a layer only if nothing else reads it: otherwise pruning or
training one layer would change what the others compute.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init

from mfac_compress.export.from_onnx.operators.products import check_inference
from mfac_compress.export.from_onnx.operators.windows import padded, pads_of
from mfac_compress.export.from_onnx.origins import Origin, origin, readers
from mfac_compress.export.from_onnx.registry import OPERATORS, Compute, Operator

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_NORMS = {
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "GroupNormalization": ("weight", "bias"),
    "InstanceNormalization": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
    "RMSNormalization": ("weight",),
}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that stands for one or more nodes, all with the same weights.

    Args:
        module: With the file's values.
        tensors: Name of a parameter or buffer to where it is stored, and whether the module has
            its transpose.
        nodes: The nodes; each has the output that the module computes.
        ends: The node after each of them that the module computes as well: the addition of a bias.
        compute: From the module to the function of the node's other inputs.
        rest: Places of these inputs.
    """

    module: nn.Module
    tensors: Mapping[str, Origin]
    nodes: tuple[ir.Node, ...]
    ends: tuple[ir.Node, ...]
    compute: Callable[[nn.Module], Compute]
    rest: tuple[int, ...]


class BatchNorm(_BatchNorm):
    """Batch norm of inputs with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        del input


class Affine(nn.Module):
    """Another norm with a scale and perhaps a shift.

    Args:
        compute: From the input, the scale and the shift.
    """

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self._compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(x, *self.parameters(recurse=False))


def find_layers(
    nodes: Sequence[ir.Node], read: Callable[[ir.Node], Operator], writable: Collection[ir.Value]
) -> Iterator[Layer]:
    """Find the layers among some nodes of a graph.

    Args:
        nodes: In their order.
        read: Reads a node's attributes.
        writable: The stored tensors that may change.
    """
    found = _Finder({*nodes}, read, writable)
    sharing: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        if node.domain:
            continue
        if node.op_type in _NORMS:
            layer = found.norm(node)
            if layer:
                yield layer
        elif node.op_type in _PRODUCTS and (weight := origin(node.inputs[1])):
            sharing.setdefault(weight.value, []).append(node)
    for users in sharing.values():
        layer = found.product(users)
        if layer:
            yield layer


@dataclass(frozen=True, eq=False)
class _Finder:
    needed: set[ir.Node]
    read: Callable[[ir.Node], Operator]
    writable: Collection[ir.Value]

    def is_own(self, found: Origin | None, uses: Collection[tuple[ir.Node, int]]) -> bool:
        """Whether a tensor may change, and is read in these places and nowhere else."""
        if found is None or found.value not in self.writable:
            return False
        places = [user and (user.node, user.place) for user in readers(found.value)]
        return len(places) == len(uses) and {*places} == {*uses}

    def norm(self, node: ir.Node) -> Layer | None:
        """A norm whose tensors all are its own; None for another."""
        names = _NORMS[node.op_type][: len(node.inputs) - 1]
        found = {name: origin(node.inputs[at]) for at, name in enumerate(names, 1)}
        for at, each in enumerate(found.values(), 1):
            if not self.is_own(each, [(node, at)]) or each.turned:
                return None
        settings = self.read(node)
        if node.op_type != "BatchNormalization":
            module: nn.Module = Affine(OPERATORS[node.op_type](settings))
            for name, each in found.items():
                module.register_parameter(name, nn.Parameter(_tensor(each)))
        else:
            check_inference(settings)
            (size,) = found["weight"].shape
            eps, kept = settings.get("epsilon", 1e-5), settings.get("momentum", 0.9)
            module = BatchNorm(size, eps, 1 - kept)
            _fill(module, found)
        return Layer(module, found, (node,), (node,), lambda m: m, (0,))

    def product(self, nodes: list[ir.Node]) -> Layer | None:
        """A linear layer or convolution; None where its weight is not a layer's own."""
        first, weight = nodes[0], origin(nodes[0].inputs[1])
        settings = self.read(first)
        if not self.is_own(weight, [(node, 1) for node in nodes]) or 0 in weight.shape:
            return None
        if any(
            node.op_type != first.op_type
            or origin(node.inputs[1]).turned != weight.turned
            or self.read(node).attributes != settings.attributes
            for node in nodes
        ):
            return None
        if first.op_type in ("Gemm", "MatMul"):
            return self._linear(nodes, weight, settings)
        return self._convolution(nodes, weight, settings)

    def _linear(self, nodes: list[ir.Node], weight: Origin, settings: Operator) -> Layer | None:
        if len(weight.shape) != 2 or settings.get("transA", 0) or settings.get("alpha", 1.0) != 1:
            return None
        # ONNX multiplies by [inputs, outputs] unless transB is set, PyTorch has [outputs, inputs].
        weight = weight._replace(turned=weight.turned == bool(settings.get("transB", 0)))
        outputs, inputs = weight.shape[::-1] if weight.turned else weight.shape
        bias, ends = self._bias(nodes, outputs, settings.get("beta", 1.0) == 1)
        module = skip_init(nn.Linear, inputs, outputs, bias=bias is not None)
        tensors = {"weight": weight} | ({"bias": bias} if bias else {})
        _fill(module, tensors)
        beta = settings.get("beta", 1.0)

        def compute(layer: nn.Module) -> Compute:
            return lambda x, more=None: layer(x) if more is None else layer(x) + beta * more

        return Layer(module, tensors, (*nodes,), ends, compute, (0,) if bias else (0, 2))

    def _convolution(
        self, nodes: list[ir.Node], weight: Origin, settings: Operator
    ) -> Layer | None:
        shape = weight.shape
        kinds = _CONVOLUTIONS if nodes[0].op_type == "Conv" else _TRANSPOSED
        if weight.turned or len(shape) not in kinds:
            return None
        group, axes = settings.get("group", 1), len(shape) - 2
        given: dict[str, Any] = {
            "stride": tuple(settings.get("strides", [1] * axes)),
            "dilation": tuple(settings.get("dilations", [1] * axes)),
        }
        first, second = shape[0], shape[1] * group
        before, after = pads_of(settings, shape[2:], (1,) * axes)
        auto = settings.get("auto_pad", "NOTSET").startswith("SAME")
        if nodes[0].op_type == "Conv":
            inputs, outputs = second, first
            inside = not auto and [*before] == [*after]
            given["padding"] = tuple(before) if inside else 0
        else:
            inputs, outputs = first, second
            more = settings.get("output_padding", [0] * axes)
            more = [m + b - a for m, b, a in zip(more, before, after, strict=True)]
            if auto or settings.get("output_shape") or min(more) < 0:
                return None
            inside, given["padding"], given["output_padding"] = True, tuple(before), tuple(more)
        bias, ends = self._bias(nodes, outputs, True)
        kind = kinds[len(shape)]
        module = skip_init(
            kind, inputs, outputs, shape[2:], groups=group, bias=bias is not None, **given
        )
        tensors = {"weight": weight} | ({"bias": bias} if bias else {})
        _fill(module, tensors)

        def compute(layer: nn.Module) -> Compute:
            def run(x: Tensor, more: Tensor | None = None) -> Tensor:
                if not inside:
                    x = padded(x, pads_of(settings, shape[2:], x.shape[2:]))
                y = layer(x)
                return y if more is None else y + more.reshape(-1, *[1] * axes)

            return run

        return Layer(module, tensors, (*nodes,), ends, compute, (0,) if bias else (0, 2))

    def _bias(
        self, nodes: list[ir.Node], outputs: int, as_is: bool
    ) -> tuple[Origin | None, tuple[ir.Node, ...]]:
        """The bias that all nodes of a layer add and nothing else reads, and where it is added."""
        if nodes[0].op_type == "MatMul":
            return self._added(nodes, outputs)
        inputs = [node.inputs[2] if len(node.inputs) > 2 else None for node in nodes]
        bias = origin(inputs[0])
        is_own = self.is_own(bias, [(node, 2) for node in nodes])
        if not is_own or not as_is or bias.shape != (outputs,):
            return None, (*nodes,)
        return bias, (*nodes,)

    def _added(
        self, nodes: list[ir.Node], outputs: int
    ) -> tuple[Origin | None, tuple[ir.Node, ...]]:
        """The bias that an addition after a MatMul adds."""
        (output,) = nodes[0].outputs
        uses = [*output.uses()]
        if len(nodes) > 1 or len(uses) != 1 or output.is_graph_output():
            return None, (*nodes,)
        user, place = uses[0]
        if user.op_type != "Add" or user.domain or user not in self.needed:
            return None, (*nodes,)
        bias = origin(user.inputs[1 - place])
        if not self.is_own(bias, [(user, 1 - place)]) or bias.shape != (outputs,):
            return None, (*nodes,)
        return bias, (user,)


def _tensor(found: Origin) -> Tensor:
    array = found.array.T if found.turned else found.array
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


@torch.no_grad()
def _fill(module: nn.Module, tensors: Mapping[str, Origin]) -> None:
    for name, found in tensors.items():
        getattr(module, name).copy_(_tensor(found))
