"""What a run says at its end: the report, the recipe that gives the same again, the manifest."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from mfac_compress.export import machine_load
from mfac_compress.pipeline.file_names import ACCELERATED
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.load import Inputs
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.calibrate import Calibrated
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.stages.validate import Latencies
from mfac_compress.pipeline.verdict.gates import judge, verdict_of
from mfac_compress.pipeline.verdict.report import MachineResult, Report, TensorAuditResult
from mfac_compress.pipeline.verdict.results import (
    code_result,
    data_result,
    flops_result,
    latency_result,
    measured_result,
    sparse_kernels_result,
    sparsity_result,
)
from mfac_compress.pipeline.verdict.warnings import warnings_of
from mfac_compress.pipeline.versions import library_versions, recipe_hash, tool_version

Facts = Mapping[str, Any]


def make_report(
    recipe: Recipe,
    inputs: Inputs,
    measured: Facts,
    timed: Latencies,
    recovered: Recovered,
    accelerated: Facts,
) -> Report:
    """Judge what was measured, and write it down.

    Args:
        recipe: What was asked for.
        inputs: What it was asked of.
        measured: Facts of the stage validate.
        timed: What this run measured anew.
        recovered: Facts of the stage recover.
        accelerated: Facts of the stage accelerate, decided.
    """
    targets = inputs.targets
    audit = _in_model_order(measured["audit"], targets)
    sizes = {name: p.numel() for name, p in inputs.model.module.named_parameters()}
    sparsity = sparsity_result(targets, sizes, audit)
    plain = measured_result(measured, tuple(map(latency_result, timed.plain)))
    kernels = sparse_kernels_result(
        accelerated, measured["sparse_kernels"], tuple(map(latency_result, timed.accelerated))
    )
    data = data_result(inputs.data)
    judged = kernels if recipe.validate_.artifact == ACCELERATED else plain
    gates = judge(
        recipe.validate_.gates,
        metric=judged.metric,
        sparsity=sparsity,
        size_ratio=judged.size_bytes.ratio,
        latency=judged.latency,
        parity_error=judged.parity_error,
    )
    return Report(
        verdict=verdict_of(gates),
        gates=gates,
        warnings=warnings_of(recipe, judged.metric, sparsity, data),
        artifact=recipe.validate_.artifact,
        metric=plain.metric,
        sparsity=sparsity,
        latency=plain.latency,
        flops=flops_result(accelerated),
        sparse_kernels=kernels,
        machine=MachineResult(**machine_load()),
        size_bytes=plain.size_bytes,
        parity_error=plain.parity_error,
        audit=audit,
        recovery=asdict(recovered),
        data=data,
        code=code_result(inputs.code),
    )


def _in_model_order(
    audit: list[dict[str, Any]], targets: PruneTargets
) -> tuple[TensorAuditResult, ...]:
    """The masks' file orders them by name: ``10.weight`` before ``2.weight``."""
    order = [target.name for target in targets.matched]
    in_order = sorted(audit, key=lambda tensor: order.index(tensor["name"]))
    return tuple(TensorAuditResult(**tensor) for tensor in in_order)


def resolved_recipe(recipe: Recipe, calibrated: Calibrated | None, accelerated: Facts) -> Recipe:
    """The recipe with what the run measured and chose, so that it gives the same run again.

    Args:
        recipe: As given.
        calibrated: Facts of the stage calibrate; None where the method has none.
        accelerated: Facts of the stage accelerate, decided.
    """
    used = "off" if accelerated["state"] in ("off", "not built") else "auto"
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
        "machine": machine_load(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "code": report.code.model_dump(mode="json"),
        "seconds": seconds,
        "files": dict(sorted(files.items())),
    }
