"""Load and check everything that a run starts from, before anything is written."""

from dataclasses import replace
from pathlib import Path

import torch

from mfac_compress.mfac.batchnorm import has_batchnorm
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import module_name
from mfac_compress.pipeline.inputs.code_sources import forget_opened, present_sources
from mfac_compress.pipeline.inputs.context import RunContext
from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.inputs.draw import draw_samples, holdout
from mfac_compress.pipeline.inputs.export_check import check_export
from mfac_compress.pipeline.inputs.layers import match_targets
from mfac_compress.pipeline.inputs.memory import MemoryPlan, memory_plan
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.inputs.plain_weights import fold_weights
from mfac_compress.pipeline.inputs.sharding import shards_of, uses_block_fisher
from mfac_compress.pipeline.inputs.smoke_test import smoke_test
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe

_MAX_REPEATED = 0.5
"""Share of the validation samples. Below it the intervals are at most 1.4 times too narrow, and the
report warns."""


def load_inputs(
    recipe: Recipe,
    model_path: str | Path,
    *,
    trust_pickle: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> RunContext:
    """Load model, data and task, match the layers, and try whether they fit.

    Returns:
        The inputs. Tensors that take no part in the loss, or whose zeros the ONNX file would not
        hold, are among those that are left out.

    Raises:
        InputError: If any of them is wrong.
    """
    ranks = ranks or Ranks()
    forget_opened()
    device = _device(recipe, ranks)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.manual_seed(recipe.run.seed)
    folder = recipe.source.folder
    model = load_model(model_path, recipe.model, folder=folder, trust_pickle=trust_pickle)
    folded = fold_weights(model.module)
    targets = match_targets(model.module, recipe)
    task = load_task(recipe.task, folder=folder)
    data = load_data(
        recipe.data,
        folder=folder,
        needs_recovery=recipe.recover.epochs > 0,
        labelled=recipe.calibrate.labels is True,
    )
    model.module.to(device)
    context = RunContext(
        recipe, model, data, task, targets, device, progress or Progress(), ranks, folded=folded
    )
    _check_batchnorm(context)
    unused = smoke_test(context)
    if unused:
        context = replace(context, targets=targets.without(unused))
    _check_graph_names(context)
    context = check_export(context)
    return replace(context, code=present_sources(_modules_of(context)))


def _modules_of(context: RunContext) -> set[str]:
    """Modules that the recipe names, and those that define the model's layers."""
    recipe = context.recipe
    named = [recipe.model.factory, recipe.task.loss, recipe.task.metric]
    named.append(getattr(recipe.data, "factory", None))
    modules = {module_name(spec) for spec in named if spec}
    return {name for name in modules if name} | {
        type(part).__module__ for part in context.model.module.modules()
    }


def check_inputs(context: RunContext) -> MemoryPlan | None:
    """Check what only the inputs together can tell: samples for m gradients, memory.

    Returns:
        What the inverse needs; None where the method makes none.

    Raises:
        InputError: If the calibration split or the memory does not suffice, or if most validation
            samples repeat others.
    """
    _check_repeats(context)
    if context.recipe.prune.method != "mfac":
        return None
    draw_samples(context, step=0)
    _check_selection(context)
    _check_shares(context)
    plan = memory_plan(context)
    if not plan.fits:
        raise InputError(plan.advice)
    return plan


def _check_repeats(context: RunContext) -> None:
    """Check that intervals of the metric would not count the same few samples many times.

    Raises:
        InputError: If most validation samples repeat the input of another.
    """
    gates, total = context.recipe.validate_.gates, len(context.data.validation)
    judged = (gates.max_metric_drop, gates.min_metric, gates.max_metric) != (None, None, None)
    repeated = context.data.repeats.get("validation", 0)
    if judged and gates.confidence != "none" and repeated > _MAX_REPEATED * total:
        raise InputError(
            f"{context.recipe.where('data.splits.validation')}: at least half of the inputs must "
            "be distinct, since intervals count samples as independent. Got "
            f"{total - repeated:,} distinct ones of {total:,}. Remove the repeats, or set "
            "validate.gates.confidence: none."
        )


def _check_shares(context: RunContext) -> None:
    """Check that there are gradients and blocks for all processes.

    Raises:
        InputError: If not.
    """
    m, processes = context.recipe.calibrate.num_gradients, context.ranks.size
    if m < processes:
        raise InputError(
            f"{context.recipe.where('calibrate.num_gradients')}: must be at least 1 for each of "
            f"{processes} processes. Got {m}. Use fewer processes."
        )
    shards_of(context)


def _check_selection(context: RunContext) -> None:
    """Check that weights can be selected one after the other, if they are to be.

    Raises:
        InputError: If not.
    """
    recipe = context.recipe
    if recipe.prune.selection == "sequential" and not uses_block_fisher(context):
        raise InputError(
            f"{recipe.where('prune.selection')}: sequential needs fisher.block_size below "
            f"calibrate.num_gradients. Got {recipe.fisher.block_size} and "
            f"{recipe.calibrate.num_gradients}. "
            "Lower the block size, or leave prune.selection out."
        )


def _check_batchnorm(context: RunContext) -> None:
    """Check that choices have samples to be made on, and batch norm batches to train on.

    Raises:
        InputError: If not.
    """
    recipe, batchnorm = context.recipe, has_batchnorm(context.model.module)
    chooses = recipe.prune.first_order or (recipe.recover.batchnorm == "auto" and batchnorm)
    if chooses and not len(holdout(context)):
        raise InputError(
            f"{recipe.where('calibrate.holdout')}: must leave at least one sample for the choices "
            "of prune.first_order and recover.batchnorm auto. Got none of "
            f"{len(context.data.calibration)}. Raise it, or set them to false and never."
        )
    if recipe.recover.epochs and recipe.recover.batch_size == 1 and batchnorm:
        raise InputError(
            f"{recipe.where('recover.batch_size')}: must be at least 2 for a model with batch "
            "norm, which has no variance of one sample. Got 1."
        )


def _check_graph_names(context: RunContext) -> None:
    """Check that the graph's input and output do not take the names of its initializers.

    Raises:
        InputError: If one does.
    """
    recipe = context.recipe
    for key, name in (
        ("input_name", recipe.export.input_name),
        ("output_name", recipe.export.output_name),
    ):
        if name in context.model.module.state_dict():
            raise InputError(
                f"{recipe.where(f'export.{key}')}: must not be the name of one of the model's "
                f"tensors. Got {name!r}. Choose another name."
            )


def _device(recipe: Recipe, ranks: Ranks) -> torch.device:
    """The device that the recipe asks for; of several GPUs, this process' own.

    Raises:
        InputError: If it asks for a GPU and there is none, or not one for each process.
    """
    has_gpu = torch.cuda.is_available()
    if recipe.run.device == "cuda" and not has_gpu:
        raise InputError(
            f"{recipe.where('run.device')}: cuda needs a GPU that PyTorch can use. Got none. "
            "Use auto or cpu."
        )
    if not has_gpu or recipe.run.device == "cpu":
        return torch.device("cpu")
    if ranks.size == 1:
        return torch.device("cuda")
    if torch.cuda.device_count() < ranks.local_size:
        raise InputError(
            f"{recipe.where('run.device')}: each process of a machine needs a GPU of its own. Got "
            f"{torch.cuda.device_count()} for {ranks.local_size} processes. Start fewer, or use "
            "cpu."
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)
