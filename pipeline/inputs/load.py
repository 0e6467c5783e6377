"""Load everything that a run starts from, and try whether it fits, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.callables import module_name
from mfac_compress.pipeline.inputs.code_sources import (
    CodeSources,
    forget_opened,
    present_sources,
)
from mfac_compress.pipeline.inputs.coupled import couple
from mfac_compress.pipeline.inputs.data import DataSplits, augment_of, load_data
from mfac_compress.pipeline.inputs.draw import Draws
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.given import (
    Given,
    check_targets,
    given_targets,
    load_given,
)
from mfac_compress.pipeline.inputs.layers import PruneTargets, match_targets
from mfac_compress.pipeline.inputs.memory import MemoryBudget, MemoryPlan, memory_plan
from mfac_compress.pipeline.inputs.model import Model, OnnxForm
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.inputs.model_layers import ModelLayers
from mfac_compress.pipeline.inputs.output import install_output
from mfac_compress.pipeline.inputs.permuted import permute_channels
from mfac_compress.pipeline.inputs.plain_weights import fold_weights
from mfac_compress.pipeline.inputs.smoke_test import smoke_test
from mfac_compress.pipeline.inputs.steps import gradients_of_steps
from mfac_compress.pipeline.inputs.task import Task, load_task
from mfac_compress.pipeline.inputs.training_loop import TrainingLoop, load_training_loop
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, of which its stages are planned.

    Attributes:
        model: On the run's device.
        data: All splits.
        calibration: The calibration split, as gradients and choices use it.
        training: What recovery trains on; None where it does not.
        task: Loss and metrics.
        targets: What is pruned. Tensors that take no part in the loss, or whose zeros the ONNX file
            would not hold, are among those that are left out.
        given: Masks and trained weights that the run goes on from; None where it prunes.
        loop: The user's own training; None where the recipe names none.
        layers: The model as a graph of layers, traced when it is first needed.
        fishers: The Fisher of each pruning step; empty where the method makes none.
        memory: What the largest inverse needs, and what there is; None where there is none.
        budget: The memory that the first process may take where it works alone.
        form: How the model is written as ONNX.
        device: Where the run computes.
        code: The user's code, as it was loaded before the first stage.
        permuted: Number of channels that were put elsewhere before pruning; None if not asked for.
        folded: Weights that were computed from others and are plain now, and by what they were
            computed.
    """

    model: Model
    data: DataSplits
    calibration: CalibrationData
    training: TrainingSamples | None
    task: Task
    targets: PruneTargets
    given: Given | None
    loop: TrainingLoop | None
    layers: ModelLayers
    fishers: tuple[FisherShape, ...]
    memory: MemoryPlan | None
    budget: MemoryBudget
    form: OnnxForm
    device: torch.device
    code: CodeSources
    permuted: int | None
    folded: Mapping[str, str]


def load_inputs(
    recipe: Recipe,
    model_path: str | Path,
    *,
    trust_pickle: bool = False,
    ranks: Ranks | None = None,
) -> Inputs:
    """Load model, data and task, match the layers, and try whether they fit.

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
    install_output(model.module, recipe.model.output)
    folded = fold_weights(model.module)
    given = load_given(recipe, model, trust_pickle=trust_pickle)
    if given is None:
        targets = match_targets(model.module, recipe, model.heads)
    else:
        targets = given_targets(given, model, recipe)
    task = load_task(recipe.task, folder=folder)
    loop = load_training_loop(recipe.recover, folder=folder)
    on_calibration = recipe.trains and recipe.recover.split == "calibration"
    data = load_data(
        recipe.data,
        folder=folder,
        needs_recovery=recipe.trains and not on_calibration,
        labelled=_labels(recipe) is True or (on_calibration and recipe.recover.needs_labels),
        recovery_labelled=recipe.recover.needs_labels,
        target=recipe.task.target,
        model=Path(model_path),
    )
    model.module.to(device)
    calibration = _calibration(recipe, data, task, device)
    form = OnnxForm(recipe.export, data.calibration, recipe.validate_.batch_size)
    model.check(form)
    targets = _prunable(recipe, model, data, calibration, targets, form)
    if given is not None:
        check_targets(given, targets.left_out, recipe)
    if recipe.prune.removes_channels:
        targets = couple(targets, model.coupling(form), recipe, ranks.size)
    layers = ModelLayers(model, calibration, recipe.export)
    if recipe.prune.method == "layerwise":
        targets = _layers_of(recipe, targets, layers)
    permuted = None
    if recipe.prune.permute:
        model, permuted = permute_channels(recipe, model, layers, targets)
        layers = replace(layers, model=model)
    fishers, memory = _fishers(recipe, targets), None
    if fishers:
        memory = memory_plan(fishers, recipe.run.memory_budget, device, ranks)
    return Inputs(
        model=model,
        data=data,
        calibration=calibration,
        training=_training(recipe, data, calibration),
        task=task,
        targets=targets,
        given=given,
        loop=loop,
        layers=layers,
        fishers=fishers,
        memory=memory,
        budget=MemoryBudget.of(recipe.run.memory_budget, device),
        form=form,
        device=device,
        code=present_sources(_modules_of(recipe, model.module)),
        permuted=permuted,
        folded=folded,
    )


def _training(
    recipe: Recipe, data: DataSplits, calibration: CalibrationData
) -> TrainingSamples | None:
    if not recipe.trains:
        return None
    if recipe.recover.split == "recovery":
        assert data.recovery is not None  # it is needed, so it was opened
        return TrainingSamples(data.recovery)
    split = replace(data.calibration, augment=data.augment)
    return TrainingSamples(split, calibration.draws.pool)


def _calibration(
    recipe: Recipe, data: DataSplits, task: Task, device: torch.device
) -> CalibrationData:
    section, split = recipe.calibrate, data.calibration
    draws = Draws(
        samples=len(split),
        samples_per_gradient=section.samples_per_gradient,
        holdout_share=section.holdout,
        seed=recipe.run.seed if section.seed is None else section.seed,
    )
    return CalibrationData(split, draws, task, _labels(recipe), device)


def _fishers(recipe: Recipe, targets: PruneTargets) -> tuple[FisherShape, ...]:
    """The Fisher of each step; none for a method without gradients."""
    if not recipe.prune.uses_gradients:
        return ()
    counts = gradients_of_steps(targets.units, recipe.prune, recipe.calibrate)
    shapes = {count: FisherShape.of(targets, count, recipe.fisher) for count in {*counts}}
    return tuple(shapes[count] for count in counts)


def _labels(recipe: Recipe) -> Literal[True, "model"]:
    """Whose labels gradients are taken by; the method layerwise takes none, and needs none."""
    section = recipe.prune
    needed = section.uses_gradients or section.method == "magnitude"
    return recipe.calibrate.labels if needed else "model"


def _layers_of(recipe: Recipe, targets: PruneTargets, layers: ModelLayers) -> PruneTargets:
    """The targets that are layers of the model's graph.

    Raises:
        InputError: If the model cannot be traced, or has none.
    """
    try:
        graph = layers.graph
    except ValueError as error:
        raise InputError(
            f"{recipe.where('prune.method')}: must be mfac or magnitude for a model whose layers "
            f"cannot be traced. {error}"
        ) from error
    reasons = {name: graph.reasons[name] for name in targets.shapes if name in graph.reasons}
    return targets.without(reasons) if reasons else targets


def _prunable(
    recipe: Recipe,
    model: Model,
    data: DataSplits,
    calibration: CalibrationData,
    targets: PruneTargets,
    form: OnnxForm,
) -> PruneTargets:
    """The targets that take part in the loss, and whose zeros the ONNX file will hold."""
    unused = smoke_test(recipe, model, targets.layout, data, calibration)
    if unused:
        targets = targets.without(unused)
    names = [target.name for target in targets.matched]
    lost = model.lost_zeros(names, form)
    return targets.without(lost) if lost else targets


def _modules_of(recipe: Recipe, module: nn.Module) -> set[str]:
    """Modules that the recipe names, and those that define the model's layers."""
    task = recipe.task
    named = [recipe.model.factory, task.loss, recipe.recover.loop]
    named += [each.metric for each in (task, *task.further_metrics.values())]
    named += [getattr(recipe.data, key, None) for key in ("factory", "collate")]
    transforms = augment_of(recipe.data).transforms
    named += [transforms] if isinstance(transforms, str) else []
    modules = {module_name(spec) for spec in named if spec}
    return {name for name in modules if name} | {type(part).__module__ for part in module.modules()}


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
