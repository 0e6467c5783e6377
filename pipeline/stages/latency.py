"""Latency of a run's files: never cached, since it is the machine's of that hour."""

from collections.abc import Sequence

from mfac_compress.export import LatencyComparison, Variant, Workload, compare_latency
from mfac_compress.export.latency import FeedsOf
from mfac_compress.pipeline.recipe.schema import LatencySection


def measure_latency(
    dense: Variant,
    variants: Sequence[Variant],
    feeds: FeedsOf,
    workloads: Sequence[Workload],
    section: LatencySection | None,
) -> dict[str, tuple[LatencyComparison, ...]]:
    """Time the pruned model's files against the dense one.

    One with sparse operators is always compared, since that decides whether it is written; the
    others where the recipe asks for it.

    Args:
        dense: The file of the model as it came.
        variants: The files of the pruned model.
        feeds: Inputs of all files for a workload.
        workloads: What is timed.
        section: ``validate.latency``.
    Returns:
        Comparisons by variant, for those that were compared.
    """
    timing = section or LatencySection()
    compared = [each for each in variants if section is not None or each.library is not None]
    return compare_latency(
        dense, compared, feeds, workloads, warmup=timing.warmup, runs=timing.runs
    )
