"""Latency of a run's files: never cached, since it is the machine's of that hour."""

from collections.abc import Sequence

from mfac_compress.export import LatencyComparison, Variant, Workload, compare_latency
from mfac_compress.export.latency import FeedsOf
from mfac_compress.pipeline.file_names import DENSE_INT8, INT8, INT8_KERNELS
from mfac_compress.pipeline.recipe.schema import LatencySection


def measure_latency(
    variants: Sequence[Variant],
    feeds: FeedsOf,
    workloads: Sequence[Workload],
    section: LatencySection | None,
) -> dict[str, tuple[LatencyComparison, ...]]:
    """Time all files against the dense one, those in 8 bits also against it in 8 bits.

    One with sparse operators is always compared, also with the file that it was made from, since
    that decides whether it is written; the others where the recipe asks for it.

    Args:
        variants: The files, the dense one first.
        feeds: Inputs of all files for a workload.
        workloads: What is timed.
        section: ``validate.latency``.
    Returns:
        Comparisons by variant, for those that were compared.
    """
    timing = section or LatencySection()
    dense, *others = variants
    with_kernels = [each for each in others if each.library is not None]
    sources = [each.made_from for each in with_kernels]
    timed = others
    if section is None:
        timed = [each for each in others if each in with_kernels or each.name in sources]
    names = {each.name for each in timed}
    also = [(each.name, each.made_from) for each in with_kernels]
    if DENSE_INT8 in names:
        also += [(name, DENSE_INT8) for name in (INT8, INT8_KERNELS) if name in names]
    return compare_latency(
        dense, timed, feeds, workloads, warmup=timing.warmup, runs=timing.runs, also=also
    )
