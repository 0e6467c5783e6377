"""Running the user's model by itself, with errors that say what to do."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import Tree, call, map_tensors, named_tensors
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.quoting import type_and_shape


@torch.no_grad()
def run_model(module: nn.Module, inputs: Tree, device: torch.device) -> Tree:
    """Run a model on inputs of the data, without gradients.

    Args:
        module: The model, or a copy of it, on ``device``.
        inputs: A batch's. Each of shape ``[n, ...]``.
        device: Where it runs.
    Returns:
        Its outputs.
    Raises:
        InputError: If it raises, or returns something other than tensors.
    """
    try:
        with user_code():
            return call(module, map_tensors(lambda tensor: tensor.to(device), inputs))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "The model must take the inputs of the data, a batch of any size. For "
            f"{type_and_shape(inputs)} it raised {describe(error)}. {_advice(inputs)}"
        ) from error


def _advice(inputs: Tree) -> str:
    if not isinstance(inputs, Tensor):
        names = ", ".join(name for name, _ in named_tensors(inputs))
        how = "by name" if isinstance(inputs, dict) else "by position"
        return f"It is called with these inputs {how}: {names}. Change the data, or wrap the model."
    other = ("integers, such as token numbers", "int64")
    if not inputs.is_floating_point():
        other = ("floats", "float32")
    return (
        f"If it takes {other[0]}, set data.dtype to {other[1]} (of arrays). Check data.layout and "
        "the shapes in the files, or wrap the model in model.factory."
    )


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give the global random number generators their state back when the block ends.

    Args:
        device: The run's. Its generator is kept, too.
    """
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


def seed_random_state(seed: int) -> None:
    """Seed the global random number generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global random number generators, as tensors and plain values.

    Args:
        device: Its generator is among them.
    """
    kind, numbers, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, numbers.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to what :func:`random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
