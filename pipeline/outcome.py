"""What a run says at its end: the report, the recipe that gives the same again, the manifest."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from mfac_compress.export import LatencyComparison, machine_load
from mfac_compress.pipeline.file_names import DENSE, SPARSE_KERNELS, variant_of
from mfac_compress.pipeline.inputs.load import Inputs
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.accelerate import Kernels
from mfac_compress.pipeline.stages.calibrate import Calibrated
from mfac_compress.pipeline.stages.reconstruct import Reconstructed
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.stages.validate import Validation
from mfac_compress.pipeline.verdict.gates import judge, verdict_of
from mfac_compress.pipeline.verdict.inputs import code_of, data_of, sparsity_of
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.warnings import warnings_of
from mfac_compress.pipeline.versions import library_versions, recipe_hash, tool_version


def make_report(
    recipe: Recipe,
    inputs: Inputs,
    validation: Validation,
    timed: Mapping[str, tuple[LatencyComparison, ...]],
    reconstructed: Mapping[str, Reconstructed],
    recovered: Recovered,
    kernels: Kernels,
) -> Report:
    """Judge what was measured, and write it down.

    Args:
        recipe: What was asked for.
        inputs: What it was asked of.
        validation: What the stage validate measured.
        timed: Latencies by variant, which this run measured anew.
        reconstructed: What the stages that repaired layers say of it, by their names.
        recovered: What the stage recover says of the training.
        kernels: Of the stage accelerate, decided.
    """
    sizes = {name: p.numel() for name, p in inputs.model.module.named_parameters()}
    sparsity, data = sparsity_of(recipe, inputs.targets, sizes), data_of(inputs.data)
    code = code_of(inputs.code)
    metric, judged = validation.metric, variant_of(recipe.validate_.artifact)
    unwritten = {SPARSE_KERNELS} if kernels.state != "used" else set()
    variants = {
        name: replace(measured, latency=timed.get(name, ()), written=name not in unwritten)
        for name, measured in validation.variants.items()
    }
    dense, shipped = variants[DENSE], variants[judged]
    gates = judge(recipe.validate_.gates, judged, metric, shipped, sparsity.parameters)
    return Report(
        verdict=verdict_of(gates),
        gates=gates,
        warnings=warnings_of(recipe, metric, dense.metric, shipped.metric, sparsity, data, code),
        judged=judged,
        metric=metric,
        variants=variants,
        kernels={SPARSE_KERNELS: kernels},
        sparsity=sparsity,
        machine=machine_load(),
        reconstruction=dict(reconstructed),
        recovery=recovered,
        data=data,
        code=code,
    )


def resolved_recipe(recipe: Recipe, calibrated: Calibrated | None, kernels: Kernels) -> Recipe:
    """The recipe with what the run measured and chose, so that it gives the same run again.

    Args:
        recipe: As given.
        calibrated: Facts of the stage calibrate; None where the method has none.
        kernels: Of the stage accelerate, decided.
    """
    used = "off" if kernels.state in ("off", "not built") else "auto"
    update = {"export": recipe.export.model_copy(update={"sparse_kernels": used})}
    if calibrated is not None:
        chosen = {"gradients": calibrated.method}
        update["calibrate"] = recipe.calibrate.model_copy(update=chosen)
    return recipe.model_copy(update=update)


def make_manifest(
    recipe: Recipe,
    inputs: Inputs,
    report: Report,
    seconds: Mapping[str, float],
    files: Mapping[str, str],
    processes: int,
) -> dict[str, Any]:
    """Say where the results came from.

    Args:
        recipe: What was asked for.
        inputs: What it was asked of.
        report: Its report.
        seconds: Time of each stage.
        files: SHA-256 of each published file.
        processes: Number of the run's processes.
    """
    return {
        "tool": tool_version(),
        "versions": library_versions(),
        "recipe_sha256": recipe_hash(recipe),
        "model_sha256": inputs.model.digest,
        **inputs.model.origin,
        "data_sha256": inputs.data.fingerprint,
        "seed": recipe.run.seed,
        "device": str(inputs.device),
        "machine": asdict(machine_load()),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "code": asdict(report.code),
        "seconds": seconds,
        "files": dict(sorted(files.items())),
    }
