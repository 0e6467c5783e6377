"""The files that a run has made of the model."""

from collections.abc import Mapping

from mfac_compress.export import Variant
from mfac_compress.pipeline.file_names import (
    DENSE,
    DENSE_INT8,
    INT8,
    INT8_KERNELS,
    LIBRARY,
    ONNX_FILES,
    SPARSE,
    SPARSE_KERNELS,
)
from mfac_compress.pipeline.run.artefact import Artefact

_MAKERS = {
    DENSE: "export",
    DENSE_INT8: "quantize",
    SPARSE: "export",
    SPARSE_KERNELS: "accelerate",
    INT8: "quantize",
    INT8_KERNELS: "accelerate-int8",
}
"""The stage that makes each variant, in the report's order."""
_MADE_FROM = {SPARSE_KERNELS: SPARSE, INT8: SPARSE, INT8_KERNELS: INT8, DENSE_INT8: DENSE}
_WITH_LIBRARY = (SPARSE_KERNELS, INT8_KERNELS)


def variants_of(made: Mapping[str, Artefact]) -> list[Variant]:
    """The files that were made, the dense one first.

    Args:
        made: Artefacts of stages by their names, those that make variants among them.
    """
    folders = {name: made[maker].folder for name, maker in _MAKERS.items() if maker in made}
    return [
        Variant(
            name,
            folder / ONNX_FILES[name],
            library=folder / LIBRARY if name in _WITH_LIBRARY else None,
            made_from=_MADE_FROM.get(name),
        )
        for name, folder in folders.items()
        if (folder / ONNX_FILES[name]).is_file()
    ]
