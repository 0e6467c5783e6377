"""Running the user's model by itself, with errors that say what to do."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.quoting import type_and_shape


@torch.no_grad()
def run_model(context: RunContext, module: nn.Module, x: Tensor) -> Tensor:
    """Run a model on inputs of the data, without gradients.

    Args:
        context: The run's.
        module: The model, or a copy of it.
        x: Inputs. Shape ``[n, ...]``.
    Returns:
        What it returns; a tensor, as far as the model is as it should be.
    Raises:
        InputError: If it raises.
    """
    try:
        with user_code():
            return module(x.to(context.device))
    except Exception as error:
        raise InputError(
            "The model must take one tensor, a batch of the data of any size. For an input of "
            f"{type_and_shape(x)} it raised {describe(error)}. {_dtype_advice(context, x)}Check "
            "data.layout and the shapes in the files, or wrap the model in model.factory."
        ) from error


def _dtype_advice(context: RunContext, x: Tensor) -> str:
    if context.recipe.data.source != "arrays":
        return ""
    if x.is_floating_point():
        return "If it takes integers, such as token numbers, set data.dtype to int64. "
    return "If it takes floats, set data.dtype to float32. "


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give the global random number generators their state back when the block ends.

    Args:
        device: The run's. Its generator is kept, too.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
