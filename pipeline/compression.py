"""A run: load the inputs, plan and check the stages, run them, judge, publish."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mfac_compress.export import data_files
from mfac_compress.export.sparse.limits import check_file
from mfac_compress.pipeline.errors import InputError, stage_named
from mfac_compress.pipeline.file_names import WITH_KERNELS
from mfac_compress.pipeline.inputs.foreign_files import is_onnx
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.outcome import make_manifest, make_report, resolved_recipe
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.artefact import Artefact
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.directory import RunDirectory
from mfac_compress.pipeline.run.pool import check_pool, open_pool
from mfac_compress.pipeline.run.runner import StageClock, check_stages, run_stages
from mfac_compress.pipeline.schedule import plan_stages
from mfac_compress.pipeline.signals import ignore_interrupts_of_the_command
from mfac_compress.pipeline.stages import accelerate
from mfac_compress.pipeline.stages.accelerate import Kernels
from mfac_compress.pipeline.stages.feeds import validation_feeds, workloads_of
from mfac_compress.pipeline.stages.latency import measure_latency
from mfac_compress.pipeline.stages.reconstruct import Reconstructed
from mfac_compress.pipeline.stages.variants import variants_of
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.report_text import markdown
from mfac_compress.pipeline.versions import recipe_hash


def compress(
    recipe: Recipe | str | Path,
    model_path: str | Path,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    trust_pickle: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Run a recipe on a model and write the run directory.

    Results of an earlier run are removed from it first.

    Args:
        recipe: A recipe, or the path of one.
        model_path: Checkpoint: ``.pt``, ``.pth``, ``.safetensors`` or ``.pt2``.
        output: Run directory; made if it is not there.
        overrides: ``key.path=value``, as of ``--set``; for a recipe that is given by its path.
        trust_pickle: Allow the checkpoint to run code while it is read.
        progress: Where progress is shown. Default: nowhere.
        ranks: The processes that run this together; the first one writes. Default: this one.

    Returns:
        The report. A failed gate does not raise: look at ``report.verdict``.

    Raises:
        InputError: If recipe, model or data is wrong.
        StageError: If a stage fails for another reason.
    """
    progress, ranks = progress or Progress(), ranks or Ranks()
    directory = ranks.on_rank_zero(lambda: RunDirectory(Path(output)))
    ranks.on_rank_zero(lambda: directory.check_spares(_files_of(recipe, model_path, overrides)))
    with ExitStack() as stack:
        # Before anything else: however this run ends, an earlier one's results do not stand for it.
        ranks.on_rank_zero(lambda: stack.enter_context(directory.exclusive()))
        with stage_named("load"), progress.stage("load"):
            recipe, inputs = load(recipe, model_path, overrides, trust_pickle, ranks)
            for remark in recipe.source.remarks:
                progress.warn(remark)
            with ranks.raise_on_every_rank():
                pool = open_pool(recipe, progress.warn) if ranks.is_rank_zero else None
            storage = directory.cache if _keeps_gradients_on_disk(inputs, ranks) else None
            if storage is not None:
                progress.detail("gradients on disk, being more than the memory budget")
            stages = plan_stages(recipe, inputs, storage)
            check_stages(stages, ranks)
            # The checks run the user's code, which may import or open more of itself.
            with ranks.raise_on_every_rank():
                inputs = replace(inputs, code=inputs.code.with_later())
        clock = StageClock(progress)
        cache_of = partial(StageCache, directory.cache, code=inputs.code, pool=pool)
        artefacts = run_stages(stages, cache_of, inputs.code, ranks, clock)
        return ranks.on_rank_zero(
            partial(_judge, recipe, inputs, artefacts, directory, clock, ranks.size)
        )


def _files_of(
    recipe: Recipe | str | Path, model_path: str | Path, overrides: Sequence[str]
) -> dict[str, Path]:
    """The files that may lie in the directory of an earlier run, by what they are to this one."""
    files = {"MODEL": Path(model_path), **_external_data(Path(model_path))}
    if not isinstance(recipe, Recipe):
        files["RECIPE"] = Path(recipe)
        try:
            recipe = load_recipe(recipe, overrides)
        except InputError:
            return files  # said later, when the directory holds no earlier results
    for key in ("masks", "weights"):
        written = getattr(recipe.prune, key)
        if written is not None:
            files[f"prune.{key}"] = recipe.source.resolve(written)
    return files


def _external_data(model: Path) -> dict[str, Path]:
    """The external data of a model that is an ONNX file; none of what cannot be read."""
    if not is_onnx(model, b""):
        return {}
    try:
        check_file(model)
        return {f"MODEL, whose data is in {file.name}": file for file in data_files(model)}
    except Exception:  # said later, when the directory holds no earlier results
        return {}


def load(
    recipe: Recipe | str | Path,
    model_path: str | Path,
    overrides: Sequence[str],
    trust_pickle: bool,
    ranks: Ranks,
) -> tuple[Recipe, Inputs]:
    """Load recipe and inputs in all processes, and check that they are the same.

    Raises:
        InputError: If something is wrong, or differs.
    """
    with ranks.raise_on_every_rank():
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe, overrides)
        if ranks.is_rank_zero:
            check_pool(recipe)
    ranks.wait_at_most(recipe.run.rank_timeout)
    with ranks.raise_on_every_rank():
        inputs = load_inputs(recipe, model_path, trust_pickle=trust_pickle, ranks=ranks)
    _check_same_inputs(recipe, inputs, ranks)
    return recipe, inputs


def _check_same_inputs(recipe: Recipe, inputs: Inputs, ranks: Ranks) -> None:
    """Check that all processes, which may be on several machines, read the same files."""
    own = {
        "recipe": recipe_hash(recipe),
        "model": inputs.model.digest,
        "data": inputs.data.fingerprint,
        "the user's code": inputs.code.digest,
        "prune.masks and prune.weights": inputs.given and inputs.given.digest,
    }
    expected = ranks.on_rank_zero(lambda: own)
    with ranks.raise_on_every_rank():
        others = [name for name in own if own[name] != expected[name]]
        if others:
            raise InputError(
                f"{', '.join(others)} must be the same for all processes. They differ on rank "
                f"{ranks.rank}. Let all of them read the same files."
            )


def _keeps_gradients_on_disk(inputs: Inputs, ranks: Ranks) -> bool:
    """Whether any process must: how much memory is free differs between them."""
    own = inputs.memory is not None and inputs.memory.on_disk
    return bool(ranks.all_reduce(torch.tensor(int(own))))


def _judge(
    recipe: Recipe,
    inputs: Inputs,
    artefacts: Mapping[str, Artefact],
    directory: RunDirectory,
    clock: StageClock,
    processes: int,
) -> Report:
    """Measure latency, judge and publish, in one process."""
    accelerated = [a for a in artefacts.values() if isinstance(a.facts, Kernels)]
    for each in accelerated:
        accelerate.check_written(recipe, each.facts)
    timed = {}
    if recipe.validate_.latency is not None or any(
        each.facts.state == "candidate" for each in accelerated
    ):
        with clock.stage("latency"):
            timed = measure_latency(
                variants_of(artefacts),
                validation_feeds(recipe.export, inputs.data.validation, inputs.model.module),
                workloads_of(recipe.export, recipe.validate_),
                recipe.validate_.latency,
            )
    decided, used = {}, []
    for each in accelerated:
        name = WITH_KERNELS[each.facts.made_from]
        decided[name] = accelerate.decided(each.facts, timed.get(name, ()))
        accelerate.check_written(recipe, decided[name])
        used += [each] if decided[name].state == "used" else []
    quantised = artefacts.get("quantize")
    with stage_named("report", resumable=True):
        report = make_report(
            recipe,
            inputs,
            artefacts["validate"].facts,
            timed,
            {name: a.facts for name, a in artefacts.items() if isinstance(a.facts, Reconstructed)},
            artefacts["recover"].facts,
            quantised and quantised.facts,
            decided,
        )
        calibrated = artefacts.get("calibrate")
        resolved = resolved_recipe(recipe, calibrated and calibrated.facts, decided)
        in_int8 = [] if quantised is None else [quantised]
        published = [artefacts["recover"], artefacts["export"], *in_int8, *used]
        for artefact in published:
            directory.publish(artefact)
        files = {name: digest for each in published for name, digest in each.files.items()}
        directory.write("recipe.resolved.yaml", dump_recipe(resolved))
        manifest = make_manifest(recipe, inputs, report, clock.seconds, files, processes)
        directory.write("manifest.json", json.dumps(manifest, indent=2) + "\n")
        directory.write("report.md", markdown(report, clock.seconds))
        # The report last: where it is, everything is, and the verdict stands.
        ignore_interrupts_of_the_command()
        directory.write("report.json", report.model_dump_json(indent=2) + "\n")
    return report
