"""A device that computes on the CPU and mixes with no other: it refuses what CUDA refuses.

Tensors made inside :func:`simulated_device` with ``device="simulated"`` hold a CPU tensor. Every
operation that PyTorch dispatches unwraps its arguments, computes on the CPU and wraps the results;
before that it raises what CUDA raises where tensors of two devices meet, where a generator belongs
to another device, or where NumPy reads a tensor. It says nothing of speed, memory or rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN._copy_from.default}
# CUDA takes indices from the CPU, but a CPU tensor takes none from CUDA.
_INDEXED = {
    _ATEN.index.Tensor,
    _ATEN._unsafe_index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}
# By which safetensors finds tensors that share memory.
_OF_STORAGE = {torch.Tensor.data_ptr, torch.Tensor.untyped_storage, torch.Tensor.storage}


class SimulatedTensor(torch.Tensor):
    """A tensor of the simulated device, whose numbers are in ``held``."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "SimulatedTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"{self.held!r} on {DEVICE}"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _compute(function, arguments, options or {})


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """Make the device usable, and yield it."""
    with _Dispatched(), _Undispatched():
        yield DEVICE


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _compute(function, arguments, options or {})


class _Undispatched(TorchFunctionMode):
    """What PyTorch answers before it dispatches."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        first = arguments[0] if arguments else None
        if isinstance(first, SimulatedTensor):
            if function is torch.Tensor.numpy:
                raise TypeError(f"can't convert {DEVICE} device type tensor to numpy.")
            if function is torch.Tensor.tolist:
                return first.detach().held.tolist()
            if function in _OF_STORAGE:
                return function(first.detach().held)
        if function is torch.Tensor.to:
            return _moved(function, arguments, options)
        makes = function in (torch.tensor, torch.as_tensor, torch.asarray)
        if makes and _is_simulated(options.get("device")):
            made = function(*arguments, **{**options, "device": "cpu"})
            return _ATEN._to_copy.default(made, device=DEVICE)
        return function(*arguments, **options)


def _moved(function: Any, arguments: tuple, options: dict) -> torch.Tensor:
    tensor, *wanted = arguments
    others = [each for each in (*wanted, *options.values()) if isinstance(each, torch.Tensor)]
    if others:
        device, dtype = others[0].device, others[0].dtype
    else:
        known = {key: value for key, value in options.items() if key != "copy"}
        device, dtype, *_ = torch._C._nn._parse_to(*wanted, **known)
    here = isinstance(tensor, SimulatedTensor)
    there = here if device is None else _is_simulated(device)
    if not here and not there:
        return function(*arguments, **options)
    if here and there and dtype in (None, tensor.dtype) and not options.get("copy"):
        return tensor
    return _ATEN._to_copy.default(
        tensor, dtype=dtype or tensor.dtype, device=DEVICE if there else torch.device("cpu")
    )


def _is_simulated(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _compute(function: Any, arguments: tuple, options: dict) -> Any:
    simulated = [a for a in tree_leaves((arguments, options)) if isinstance(a, SimulatedTensor)]
    device = options.get("device")
    here = _is_simulated(device) or (device is None and bool(simulated))
    _check(function, arguments, options, simulated, here)
    if "device" in options:
        options = {**options, "device": torch.device("cpu"), "pin_memory": False}
        if function is _ATEN._to_copy.default:
            del options["pin_memory"]

    def held(value: Any) -> Any:
        return value.held if isinstance(value, SimulatedTensor) else value

    result = function(*tree_map(held, arguments), **tree_map(held, options))
    if function is _ATEN._local_scalar_dense.default:
        return result
    if function is _ATEN.copy_.default:
        return arguments[0]
    changed = {id(tensor.held): tensor for tensor in simulated}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in changed:
            return changed[id(value)]
        return SimulatedTensor(value) if here else value

    return tree_map(wrapped, result)


def _check(
    function: Any, arguments: tuple, options: dict, simulated: list[torch.Tensor], here: bool
) -> None:
    others = [
        a
        for a in tree_leaves((arguments, options))
        if isinstance(a, torch.Tensor) and not isinstance(a, SimulatedTensor) and a.ndim
    ]
    if function in _INDEXED and isinstance(arguments[0], SimulatedTensor):
        others = [tensor for tensor in others if tensor.is_floating_point()]
    elif function in _INDEXED and simulated:
        raise RuntimeError(f"indices should be on the device of the indexed tensor ({function})")
    if simulated and others and function not in _COPIES:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu ({function})"
        )
    generator = options.get("generator")
    if here and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        raise RuntimeError(f"Expected a {NAME!r} generator, but found 'cpu' ({function})")
