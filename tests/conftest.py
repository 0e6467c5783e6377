"""Devices: a simulated one for every machine, and CUDA where PyTorch finds it; a fast exporter."""

import copy
import gc
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

_SOURCE = Path(__file__).with_name("simulated_device.py")


def _simulated_device() -> ModuleType | None:
    """Register the device. It must be known before the first backward pass of the process."""
    spec = importlib.util.spec_from_file_location(_SOURCE.stem, _SOURCE)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # an older PyTorch
        return None
    return module


_MODULE = _simulated_device()


@pytest.fixture
def simulated() -> Iterator[torch.device]:
    """A device that computes on the CPU and refuses its tensors, as CUDA does."""
    if _MODULE is None:
        pytest.skip("this PyTorch has no devices made in Python")
    with _MODULE.simulated_device() as device:
        yield device


@pytest.fixture
def cuda() -> torch.device:
    """The GPU; tests that use it are marked ``cuda``."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    return torch.device("cuda")


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def accelerator(request: pytest.FixtureRequest) -> torch.device:
    """Each in turn."""
    return request.getfixturevalue(request.param)


def _freeze() -> None:
    """Keep the garbage collector from going through what stays, again and again.

    PyTorch, its exporter and the tests are half a million objects: a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_collection() -> None:
    gc.disable()  # what is imported from here on stays


def pytest_collection_finish() -> None:
    _freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the fixtures of a module are gone."""
    if nextitem is not None and nextitem.path != item.path:
        _freeze()


@pytest.fixture(scope="session")
def fast_exporter() -> Iterator[None]:
    """Let PyTorch's exporter make its tables of operators once, and not anew for every export.

    It parses the sources of a thousand functions for the one, and asks each operator whether it may
    be decomposed for the other: half the time of a run of these tests. The operators are always the
    same, as no test registers its own.
    """
    try:
        from torch.export import decomp_utils, exported_program
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        made = cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # another PyTorch: its exporter takes its time
        yield
        return

    def from_torchlib(*arguments: object, **options: object) -> ONNXRegistry:
        registry = copy.copy(made(*arguments, **options))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        for module in (decomp_utils, exported_program):
            found = getattr(module, "_collect_all_valid_cia_ops", None)
            if found is not None:
                patch.setattr(module, "_collect_all_valid_cia_ops", cache(found))
        yield
