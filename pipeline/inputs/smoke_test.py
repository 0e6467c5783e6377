"""Model, loss and metric on a few samples: what does not fit is refused before the work."""

from torch import Tensor

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.copying import check_copy
from mfac_compress.pipeline.inputs.data import Split
from mfac_compress.pipeline.inputs.forward import random_state_kept, run_model
from mfac_compress.pipeline.inputs.gradient_check import find_unused
from mfac_compress.pipeline.inputs.independence import check_independence
from mfac_compress.pipeline.inputs.training_check import check_training


def smoke_test(context: RunContext) -> dict[str, str]:
    """Run the model, the loss and a built-in metric as the stages will, on a few samples.

    In evaluation mode forward and backward, in training mode too where the recipe trains, and
    one copy of the module. Random numbers, weights and running statistics are as before
    afterwards. The user's own metric is left out: one of the whole set, such as a rank
    correlation, may have no value for a few samples. So are labels of the calibration samples,
    where none are needed.

    Returns:
        Matched tensors to leave out, with the reason: those that take no part in the loss.

    Raises:
        InputError: If the data does not fit the model, or what it returns the loss or the metric;
            if a sample's outputs depend on the others of its batch; if the model cannot be copied,
            differentiated or trained.
    """
    _check_interval(context)
    with random_state_kept(context.device):
        for split in context.data:
            _check_fits(context, split)
        check_independence(context)
        check_copy(context)
        unused = find_unused(context)
        check_training(context)
    return unused


def _check_interval(context: RunContext) -> None:
    """Differences of 0/1 scores have an interval from one sample on, others from two."""
    if context.task.metric_name != "accuracy" and len(context.data.validation) < 2:
        raise InputError(
            f"data must have 2 validation samples or more for the interval of task.metric "
            f"{context.task.metric_name!r}. Got {len(context.data.validation)}. Add some."
        )


def _check_fits(context: RunContext, split: Split) -> None:
    """Check outputs against loss and metric, with the largest class number among the targets."""
    x, y = _first(split)
    outputs = run_model(context, context.model.module, x)
    labelled = split.name != "calibration" or context.recipe.calibrate.labels is True
    if not labelled:
        return
    context.task.loss(outputs, y.to(context.device))
    if split.name == "validation" and context.task.metric_name == "accuracy":
        context.task.evaluate(outputs, y.to(context.device))


def _first(split: Split) -> tuple[Tensor, Tensor]:
    positions = split.to_try
    return next(split.batches(len(positions), indices=positions))
