"""Which stages a recipe asks for, what each of them reads, and in which order they come.

The only file that names all stages. What a stage reads is its key: see
:mod:`mfac_compress.pipeline.run.stage`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mfac_compress.pipeline.digest import file_digest
from mfac_compress.pipeline.file_names import INT8, SPARSE
from mfac_compress.pipeline.inputs.load import Inputs
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.steps import steps_of
from mfac_compress.pipeline.recipe.schema import BlocksSection, Recipe, RecoverSection
from mfac_compress.pipeline.run.stage import Keyed, Stage
from mfac_compress.pipeline.stages import (
    accelerate,
    calibrate,
    export,
    given,
    own_loop,
    prune,
    prune_layers,
    quantization_aware,
    quantize,
    reconstruct,
    recover,
    validate,
)
from mfac_compress.pipeline.stages.feeds import validation_feeds, workloads_of
from mfac_compress.pipeline.versions import library_versions, recipe_hash, tool_version


def plan_stages(recipe: Recipe, inputs: Inputs, storage: Path | None = None) -> list[Stage]:
    """List the stages of a run; nothing is computed.

    Args:
        recipe: The recipe.
        inputs: What was loaded for it.
        storage: Folder for gradients that the memory does not hold; None for in memory.
    """
    files = [_export(recipe, inputs), _accelerate("accelerate", recipe, inputs, SPARSE, "export")]
    if recipe.quantize.is_on:
        files += [
            _quantize(recipe, inputs),
            _accelerate("accelerate-int8", recipe, inputs, INT8, "quantize"),
        ]
    return [*_states(recipe, inputs, storage), *files, _validate(recipe, inputs, files)]


def _states(recipe: Recipe, inputs: Inputs, storage: Path | None) -> Iterator[Stage]:
    """Prune, repair and recover in turn, each from the state before; the last is ``recover``."""
    if recipe.prune.uses_gradients:
        yield _calibrate(recipe, inputs, storage)
    in_float = {"epochs": recipe.prune.epochs_between, "quantization_aware": 0}
    between = recipe.recover.model_copy(update=in_float)
    steps = [[]] if inputs.given else steps_of(inputs.targets.units, recipe.prune)
    repair = recipe.reconstruct
    state: dict[str, str] = {}
    for step, shares in enumerate(steps):
        pruned, repaired = f"prune-{step:02d}", f"reconstruct-{step:02d}"
        recovered, is_last = f"recover-{step:02d}", step + 1 == len(steps)
        yield _prune(pruned, recipe, inputs, step, shares, state, storage)
        state = {"state": pruned}
        if repair.method != "none" and (is_last or repair.every_step):
            name = "reconstruct" if is_last else repaired
            trained = repair.blocks_at_end if is_last else repair.blocks_between
            yield _reconstruct(name, recipe, inputs, trained, state)
            state = {"state": name}
        if between.epochs and not is_last:
            stage = _recover(recovered, recipe, inputs, between, "prune.epochs_between", state)
            yield stage if step == 0 else stage.unchecked()
            state = {"state": recovered}
    last = _recover("recover", recipe, inputs, recipe.recover, "recover.epochs", state)
    yield last if inputs.loop is None else _by_loop(last, inputs)


def _calibrate(recipe: Recipe, inputs: Inputs, storage: Path | None) -> Stage:
    return Stage(
        "calibrate",
        calibrate.calibrate,
        reads={
            "model": inputs.model,
            "calibration": inputs.calibration,
            "shape": inputs.fishers[0],
            "gradients": recipe.calibrate.gradients,
            "storage": Keyed(storage, None),
        },
        check=partial(
            calibrate.check, shapes=inputs.fishers, memory=inputs.memory, where=recipe.where
        ),
        facts=calibrate.Calibrated,
    )


def _prune(
    name: str,
    recipe: Recipe,
    inputs: Inputs,
    step: int,
    shares: Sequence[float],
    state: Mapping[str, str],
    storage: Path | None,
) -> Stage:
    """One step by the recipe's method, from the state before it."""
    section, targets, where = recipe.prune, inputs.targets, recipe.where
    if inputs.given is not None:
        reads = {"given": inputs.given}
        return Stage(name, given.take, reads=reads, facts=prune.Pruned, ranks="zero")
    reads = {"model": inputs.model, "units": targets.units, "shares": shares}
    if section.method == "magnitude":
        reads["layout"] = targets.layout
        run = prune.prune_by_magnitude
        return Stage(name, run, reads=reads, after=state, facts=prune.Pruned)
    reads |= {
        "step": step,
        "calibration": inputs.calibration,
        "shape": inputs.fishers[step] if inputs.fishers else None,
        "storage": Keyed(storage, None),
    }
    by_curvature = None
    if section.uses_gradients:
        by_curvature = prune.Removal.of(recipe)
        state = {"calibrated": "calibrate", **state}
    if section.method == "mfac":
        return Stage(
            name,
            prune.prune,
            reads={**reads, "removal": by_curvature},
            after=state,
            check=partial(prune.check, where=where),
            facts=prune.Pruned,
        )
    return Stage(
        name,
        prune_layers.prune,
        reads={
            **reads,
            "layers": inputs.layers,
            "layout": targets.layout,
            "removal": prune_layers.Removal.of(recipe),
            "by_curvature": by_curvature,
        },
        after=state,
        check=partial(prune_layers.check, budget=inputs.budget, where=where),
        facts=prune.Pruned,
        ranks="all" if by_curvature else "zero",
    )


def _reconstruct(
    name: str,
    recipe: Recipe,
    inputs: Inputs,
    blocks: BlocksSection | None,
    state: Mapping[str, str],
) -> Stage:
    return Stage(
        name,
        reconstruct.reconstruct,
        reads={
            "model": inputs.model,
            "layers": inputs.layers,
            "calibration": inputs.calibration,
            "solve": reconstruct.LeastSquares.of(recipe.reconstruct),
            "blocks": blocks,
            "is_last": name == "reconstruct",
            "draw": name,
        },
        after=state,
        check=partial(
            reconstruct.check,
            pruned=[target.name for target in inputs.targets.matched],
            samples_key="samples" if name == "reconstruct" else "samples_between",
            budget=inputs.budget,
            where=recipe.where,
        ),
        facts=reconstruct.Reconstructed,
        ranks="zero",
    )


def _recover(
    name: str,
    recipe: Recipe,
    inputs: Inputs,
    section: RecoverSection,
    epochs_key: str,
    state: Mapping[str, str],
) -> Stage:
    return Stage(
        name,
        recover.recover,
        reads={
            "model": inputs.model,
            "section": section,
            "samples": inputs.training if section.epochs else None,
            "calibration": inputs.calibration,
            "augment": inputs.data.augment,
            "seed": recipe.run.seed,
            "in_8_bits": _in_8_bits(recipe, inputs) if section.quantization_aware else None,
        },
        after=state,
        check=partial(recover.check, where=recipe.where, epochs_key=epochs_key),
        facts=recover.Recovered,
    )


def _in_8_bits(recipe: Recipe, inputs: Inputs) -> quantization_aware.FileIn8Bits:
    return quantization_aware.FileIn8Bits.of(
        recipe.quantize, inputs.form, recipe.export.round_to, _removes_dead(recipe, inputs.model)
    )


def _by_loop(recover: Stage, inputs: Inputs) -> Stage:
    """The same by the user's own training, which knows nothing of other processes."""
    reads = {**recover.reads, "loop": inputs.loop, "samples": inputs.training}
    del reads["in_8_bits"]
    return replace(recover, run=own_loop.recover_by_loop, reads=reads, ranks="zero")


def _export(recipe: Recipe, inputs: Inputs) -> Stage:
    versions = {f"version.{name}": version for name, version in library_versions().items()}
    return Stage(
        "export",
        export.export,
        reads={
            "model": inputs.model,
            "form": inputs.form,
            "metadata": {
                "mfac_compress.version": tool_version(),
                "mfac_compress.recipe_sha256": recipe_hash(recipe),
                **versions,
            },
            "remove_dead": _removes_dead(recipe, inputs.model),
            "round_to": recipe.export.round_to,
        },
        after={"state": "recover"},
        facts=export.Exported,
        ranks="zero",
    )


def _removes_dead(recipe: Recipe, model: Model) -> bool:
    """Whether dead channels go; from a graph of the user's own only where the recipe says so."""
    asked = "remove_dead" in recipe.export.model_fields_set or recipe.prune.removes_channels
    return recipe.export.remove_dead and (asked or not model.keeps_graph)


def _quantize(recipe: Recipe, inputs: Inputs) -> Stage:
    trained = recipe.recover.quantization_aware
    return Stage(
        "quantize",
        quantize.quantize,
        reads={"section": recipe.quantize, "calibration": inputs.calibration},
        after={"export": "export", **({"trained": "recover"} if trained else {})},
        check=partial(quantize.check, opset=inputs.model.opset, where=recipe.where),
        facts=quantize.Quantised,
        ranks="zero",
    )


def _accelerate(name: str, recipe: Recipe, inputs: Inputs, source: str, maker: str) -> Stage:
    """Sparse operators for a variant, by the stage that makes it."""
    library = accelerate.built_library()
    return Stage(
        name,
        accelerate.accelerate,
        reads={
            "source": source,
            "sparse_kernels": recipe.export.sparse_kernels,
            "library": Keyed(library, library and file_digest(library)),
            "workloads": workloads_of(recipe.export, recipe.validate_),
            "feeds": validation_feeds(recipe.export, inputs.data.validation, inputs.model.module),
            "cpu": accelerate.processor(),
        },
        after={"export": "export", "source": maker},
        check=partial(accelerate.check, artifact=recipe.artifact, where=recipe.where),
        facts=accelerate.Kernels,
        ranks="zero",
    )


def _validate(recipe: Recipe, inputs: Inputs, files: Sequence[Stage]) -> Stage:
    section = recipe.validate_
    return Stage(
        "validate",
        validate.validate,
        reads={
            "model": inputs.model,
            "pruned": [target.name for target in inputs.targets.matched],
            "samples": inputs.data.validation,
            "task": Keyed(inputs.task, recipe.task.model_dump(mode="json", exclude={"loss"})),
            "batch_size": section.batch_size,
            "confidence": section.gates.confidence,
        },
        after={"state": "recover", **{stage.name: stage.name for stage in files}},
        check=partial(
            validate.check,
            repeats=inputs.data.repeats.get("validation", 0),
            gates=section.gates,
            where=recipe.where,
        ),
        facts=validate.Validation,
        ranks="zero",
    )
