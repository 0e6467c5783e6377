"""A trial of model, loss and metric on a few samples: what does not fit is told before the work."""

import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, user_code
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.data import Split


def try_out(context: RunContext) -> None:
    """Run the model, the loss and a built-in metric once.

    The user's own metric is left out: one of the whole set, such as a rank correlation, may have
    no value for a few samples. So are labels of the calibration samples, where none are needed.

    Raises:
        InputError: If the data does not fit the model, or what it returns the loss or the metric.
    """
    _check_interval(context)
    uses_labels = context.recipe.calibrate.labels is True
    for split in context.data:
        x, y = _first(split)
        outputs = _outputs(context, x)
        if split.name != "calibration" or uses_labels:
            context.task.loss(outputs, y.to(context.device))
    if context.task.metric_name == "accuracy":
        context.task.evaluate(outputs, y.to(context.device))


def _check_interval(context: RunContext) -> None:
    """Differences of 0/1 scores have an interval from one sample on, others from two."""
    if context.task.metric_name != "accuracy" and len(context.data.validation) < 2:
        raise InputError(
            f"data must have 2 validation samples or more for the interval of task.metric "
            f"{context.task.metric_name!r}. Got {len(context.data.validation)}. Add some."
        )


def _first(split: Split) -> tuple[Tensor, Tensor]:
    positions = split.to_try
    return next(split.batches(len(positions), indices=positions))


@torch.no_grad()
def _outputs(context: RunContext, x: Tensor) -> Tensor:
    try:
        with user_code():
            return context.model.module(x.to(context.device))
    except Exception as error:
        given = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        raise InputError(
            "The model must take one tensor, a batch of the data. For an input of "
            f"{given} it raised {describe(error)}. {_dtype_advice(context, x)}Check data.layout "
            "and the shapes in the files, or wrap the model in model.factory."
        ) from error


def _dtype_advice(context: RunContext, x: Tensor) -> str:
    if context.recipe.data.source != "arrays":
        return ""
    if x.is_floating_point():
        return "If it takes integers, such as token numbers, set data.dtype to int64. "
    return "If it takes floats, set data.dtype to float32. "
