"""Names of modules and parameters after the tensors of a file."""

from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor, nn

from mfac_compress.export.passes import TRANSPOSED
from mfac_compress.export.shapes import with_shapes

_WEIGHT = (".weight", ".weight.T")


def module_name(tensor: str) -> str:
    """Name a layer after its weight's tensor.

    Example:
        >>> module_name("encoder.0.weight"), module_name("onnx::MatMul_7")
        ('encoder.0', 'onnx::MatMul_7')
    """
    return next((tensor.removesuffix(end) for end in _WEIGHT if tensor.endswith(end)), tensor)


def named_as_module(model: ir.Model, stored: Mapping[str, tuple[str, bool]]) -> ir.Model:
    """Copy a graph, with its tensors named after the module's, as an export would name them.

    Args:
        model: Not changed.
        stored: Parameter to the name of its tensor, and whether that is its transpose.
    """
    copied = ir.from_proto(ir.to_proto(model))
    names = {tensor: name + TRANSPOSED * turned for name, (tensor, turned) in stored.items()}
    for value in [*copied.graph.initializers.values()]:
        value.name = names.get(value.name, value.name)
    return with_shapes(copied)


def add_module(root: nn.Module, name: str, module: nn.Module) -> str:
    """Add a module to another under a dotted name, or under a similar one if that is taken.

    Args:
        root: Gets the module, and modules between them.
        name: Any text.
        module: What to add.
    Returns:
        The name that it has.
    """
    owner, last = _owner(root, name)
    owner.add_module(last, module)
    return _name_of(root, module)


def add_tensor(root: nn.Module, name: str, tensor: Tensor) -> str:
    """Add a parameter or, if it is none, a buffer, as :func:`add_module` does."""
    owner, last = _owner(root, name)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor)
    path = _name_of(root, owner)
    return f"{path}.{last}" if path else last


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that can hold a name, and the name in it."""
    *parts, last = name.split(".")
    owner = root
    for part in parts:
        inner = owner._modules.get(part)
        if inner is None and (not part or hasattr(owner, part)):
            return _flat(root, name)
        if inner is None:
            inner = nn.Module()
            owner.add_module(part, inner)
        owner = inner
    return _flat(root, name) if not last or hasattr(owner, last) else (owner, last)


def _flat(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    plain = name.replace(".", "_") or "tensor"
    free, number = plain, 1
    while hasattr(root, free):
        number += 1
        free = f"{plain}_{number}"
    return root, free


def _name_of(root: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in root.named_modules() if each is module)
