"""What a run says at its end: the report, the recipe that gives the same again, the manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from mfac_compress.export import LatencyComparison, machine_load
from mfac_compress.pipeline.file_names import DENSE, DENSE_INT8, REFERENCES, variant_of
from mfac_compress.pipeline.inputs.load import Inputs
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.accelerate import Kernels
from mfac_compress.pipeline.stages.calibrate import Calibrated
from mfac_compress.pipeline.stages.quantize import Quantised
from mfac_compress.pipeline.stages.reconstruct import Reconstructed
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.stages.validate import Validation
from mfac_compress.pipeline.verdict.gates import judge_all, verdict_of
from mfac_compress.pipeline.verdict.inputs import code_of, data_of, sparsity_of
from mfac_compress.pipeline.verdict.report import Report
from mfac_compress.pipeline.verdict.warnings import warnings_of, warnings_of_metric
from mfac_compress.pipeline.versions import library_versions, recipe_hash, tool_version


def make_report(
    recipe: Recipe,
    inputs: Inputs,
    validation: Validation,
    timed: Mapping[str, tuple[LatencyComparison, ...]],
    reconstructed: Mapping[str, Reconstructed],
    recovered: Recovered,
    quantised: Quantised | None,
    kernels: Mapping[str, Kernels],
) -> Report:
    """Judge what was measured, and write it down.

    Args:
        recipe: What was asked for.
        inputs: What it was asked of.
        validation: What the stage validate measured.
        timed: Latencies by variant, which this run measured anew.
        reconstructed: What the stages that repaired layers say of it, by their names.
        recovered: What the stage recover says of the training.
        quantised: What the stage quantize says; None where there is none.
        kernels: Of the stages accelerate, decided, by the variant that they are for.
    """
    sizes = {name: p.numel() for name, p in inputs.model.module.named_parameters()}
    gradients = [fisher.num_gradients for fisher in inputs.fishers]
    sparsity = sparsity_of(recipe, inputs.targets, sizes, gradients)
    data, code = data_of(inputs.data), code_of(inputs.code)
    metric, further = validation.metric, validation.further_metrics
    judged = variant_of(recipe.artifact)
    unwritten = {name for name, each in kernels.items() if each.state != "used"}
    variants = {
        name: replace(
            measured,
            latency=_against(DENSE, timed.get(name, ())),
            latency_int8=_against(DENSE_INT8, timed.get(name, ())),
            written=name not in unwritten,
        )
        for name, measured in validation.variants.items()
    }
    shipped = {
        name: each for name, each in variants.items() if each.written and name not in REFERENCES
    }
    gates = judge_all(recipe.validate_.gates, judged, metric, further, shipped, sparsity.parameters)
    dense, own = variants[DENSE], shipped[judged]
    of_run = warnings_of(recipe, metric, dense.metric, own.metric, sparsity, quantised, data, code)
    of_further = (
        warning
        for name, each in further.items()
        for warning in warnings_of_metric(
            recipe,
            f"task.further_metrics.{name}",
            each,
            dense.further_metrics[name],
            own.further_metrics[name],
        )
    )
    return Report(
        verdict=verdict_of(gates),
        gates=gates,
        warnings=(*of_run, *of_further),
        judged=judged,
        metric=metric,
        further_metrics=further,
        variants=variants,
        kernels=dict(kernels),
        sparsity=sparsity,
        machine=machine_load(),
        reconstruction=dict(reconstructed),
        recovery=recovered,
        quantisation=quantised,
        data=data,
        code=code,
    )


def _against(
    reference: str, compared: Sequence[LatencyComparison]
) -> tuple[LatencyComparison, ...]:
    return tuple(one for one in compared if one.reference == reference)


def resolved_recipe(
    recipe: Recipe, calibrated: Calibrated | None, kernels: Mapping[str, Kernels]
) -> Recipe:
    """The recipe with what the run measured and chose, so that it gives the same run again.

    Args:
        recipe: As given.
        calibrated: Facts of the stage calibrate; None where the method has none.
        kernels: Of the stages accelerate, decided.
    """
    tried = any(each.state not in ("off", "not built") for each in kernels.values())
    used = "auto" if tried else "off"
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
        **(inputs.given.digest if inputs.given else {}),
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
