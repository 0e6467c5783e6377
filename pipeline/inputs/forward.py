"""Running the user's model by itself, with errors that say what to do."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfac_compress.mfac.batch import call
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.quoting import type_and_shape


@torch.no_grad()
def run_model(module: nn.Module, x: Tensor, device: torch.device) -> Any:
    """Run a model on inputs of the data, without gradients.

    Args:
        module: The model, or a copy of it, on ``device``.
        x: Inputs. Shape ``[n, ...]``.
        device: Where it runs.
    Returns:
        What it returns; a tensor, as far as the model is as it should be.
    Raises:
        InputError: If it raises.
    """
    try:
        with user_code():
            return call(module, x.to(device))
    except Exception as error:
        other = (
            ("integers, such as token numbers", "int64")
            if x.is_floating_point()
            else ("floats", "float32")
        )
        raise InputError(
            "The model must take one tensor, a batch of the data of any size. For an input of "
            f"{type_and_shape(x)} it raised {describe(error)}. If it takes {other[0]}, set "
            f"data.dtype to {other[1]} (of arrays). Check data.layout and the shapes in the files, "
            "or wrap the model in model.factory."
        ) from error


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
