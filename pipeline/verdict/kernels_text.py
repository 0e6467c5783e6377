"""What the report says of the file with sparse operators, as Markdown."""

from collections.abc import Sequence

from mfac_compress.pipeline.file_names import ACCELERATED
from mfac_compress.pipeline.inputs.memory import readable_bytes
from mfac_compress.pipeline.verdict.report import LayerSpeedResult, SparseKernelsResult


def kernels_summary(kernels: SparseKernelsResult) -> str:
    """Whether there is such a file, what it needs, and how it compares."""
    if kernels.metric is None or kernels.size_bytes is None:
        return f"There is no {ACCELERATED}: {kernels.reason}."
    parity = kernels.parity_error
    replaced = sum(layer.block is not None for layer in kernels.layers)
    return (
        f"{ACCELERATED} computes {replaced} of {len(kernels.layers)} layers with sparse "
        f"operators and needs the library in kernels/ ({readable_bytes(kernels.library_bytes)}). "
        f"{kernels.metric.name} {kernels.metric.sparse:.4f} (drop {kernels.metric.drop:.4f}); "
        f"parity error {'not finite' if parity is None else f'{parity:.2g}'}; "
        f"{readable_bytes(kernels.size_bytes.sparse.raw_bytes)}, "
        f"{readable_bytes(kernels.size_bytes.sparse.compressed_bytes)} compressed."
    )


LAYER_HEAD = ("layer", "zeros", "sparse operator", "dense ms", "sparse ms", "why")


def layer_rows(layers: Sequence[LayerSpeedResult]) -> list[Sequence[str]]:
    """A row for each layer, with its times at the first setting and the last."""
    return [
        (
            layer.weight or layer.name,
            "" if layer.sparsity is None else f"{layer.sparsity:.1%}",
            f"yes, blocks of {layer.block}" if layer.block else "no",
            " / ".join(f"{time.dense_ms:.3g}" for time in layer.times),
            " / ".join(f"{time.sparse_ms:.3g}" for time in layer.times),
            layer.reason,
        )
        for layer in layers
    ]
