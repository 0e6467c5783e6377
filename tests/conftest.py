"""Devices: a simulated one for every machine, and CUDA where PyTorch finds it; a fast exporter."""

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _beside(name: str) -> ModuleType:
    """Load a module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _simulated_device() -> ModuleType | None:
    """Register the device. It must be known before the first backward pass of the process."""
    try:
        return _beside("simulated_device")
    except ImportError:  # an older PyTorch
        return None


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
    """See the file of that name."""
    with _beside("fast_exporter").fast_exporter():
        yield
