"""Model, loss and metrics on a few samples: what does not fit is refused before the work."""

import torch
from torch import nn

from mfac_compress.mfac.batch import Tree, map_tensors
from mfac_compress.mfac.layout import Layout
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.copying import check_copy
from mfac_compress.pipeline.inputs.correlation import check_count
from mfac_compress.pipeline.inputs.data import DataSplits, Split
from mfac_compress.pipeline.inputs.forward import random_state_kept, run_model
from mfac_compress.pipeline.inputs.gradient_check import find_unused
from mfac_compress.pipeline.inputs.independence import check_independence
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.output import join_batches
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.inputs.task_metric import TaskMetric
from mfac_compress.pipeline.recipe.schema import Recipe


def smoke_test(
    recipe: Recipe,
    model: Model,
    layout: Layout,
    data: DataSplits,
    calibration: CalibrationData,
) -> dict[str, str]:
    """Run the model, the loss and built-in metrics as the stages will, on a few samples.

    In evaluation mode forward and backward, and one copy of the module. Random numbers, weights
    and running statistics are as before afterwards. The user's own metrics are left out: one of the
    whole set, such as a rank correlation, may have no value for a few samples. So are labels where
    none are needed.

    Args:
        recipe: Says what the stages will do.
        model: On the run's device.
        layout: The model's parameters that are to be pruned.
        data: All splits.
        calibration: Calibration samples and the task.

    Returns:
        Matched tensors to leave out, with the reason: those that take no part in the loss.

    Raises:
        InputError: If the data does not fit the model, or what it returns the loss or the metric;
            if a sample's outputs depend on the others of its batch; if the model cannot be copied
            or differentiated.
    """
    task, device = calibration.task, calibration.device
    labelled = {"validation"}
    if calibration.labels is True:
        labelled.add("calibration")
    if recipe.trains and recipe.recover.needs_labels:
        labelled.add(recipe.recover.split)
    for metric in task.metrics:
        _check_interval(metric, data.validation)
    with random_state_kept(device):
        for split in data:
            _check_fits(model.module, split, task if split.name in labelled else None, device)
        check_independence(model.module, data.validation, device)
        check_copy(model)
        return find_unused(recipe, model.module, layout, calibration)


def _check_interval(metric: TaskMetric, validation: Split) -> None:
    """Differences of 0/1 scores have an interval from one sample on, others from two."""
    if metric.name != "accuracy" and len(validation) < 2:
        raise InputError(
            f"data must have 2 validation samples or more for the interval of {metric.key} "
            f"{metric.name!r}. Got {len(validation)}. Add some."
        )
    if metric.name == "spearman_cosine":
        check_count(metric.key, len(validation))


def _check_fits(module: nn.Module, split: Split, task: Task | None, device: torch.device) -> None:
    """Check outputs against loss and metric, with the largest class number among the targets."""
    positions = split.to_try
    inputs, targets = next(split.batches(len(positions), indices=positions)).to(device)
    outputs = run_model(module, inputs, device)
    if task is None:
        return
    if task.has_loss:
        task.loss(outputs, targets)
    if split.name == "validation":
        for metric in task.metrics:
            metric.check(outputs, targets)
        if split.dataset.kind != "storage" and split.dataset.alone:
            _check_joined(module, split, device)


def _check_joined(module: nn.Module, split: Split, device: torch.device) -> None:
    """Check that padded batches, whose lengths differ, have outputs and targets of one shape."""
    alone = [next(split.batches(1, indices=[each])) for each in split.to_try]
    join_batches([_arrays(run_model(module, batch.inputs, device)) for batch in alone], "outputs")
    join_batches([_arrays(batch.targets) for batch in alone], "targets")


def _arrays(tree: Tree) -> Tree:
    return map_tensors(lambda tensor: tensor.cpu().numpy(), tree)
