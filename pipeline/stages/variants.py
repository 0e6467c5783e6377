"""The files that a run has made of the model."""

from pathlib import Path

from mfac_compress.export import Variant
from mfac_compress.pipeline.file_names import DENSE, LIBRARY, ONNX_FILES, SPARSE, SPARSE_KERNELS


def dense_variant(folder: Path) -> Variant:
    """The dense file in a folder."""
    return Variant(DENSE, folder / ONNX_FILES[DENSE])


def sparse_variants(exported: Path, accelerated: Path) -> list[Variant]:
    """The files of the pruned model: the plain one, and that with sparse operators if there is one.

    Args:
        exported: Folder of the plain files.
        accelerated: Folder of the file with sparse operators and the library, where they were made.
    """
    variants = [Variant(SPARSE, exported / ONNX_FILES[SPARSE])]
    kernels = accelerated / ONNX_FILES[SPARSE_KERNELS]
    if kernels.is_file():
        library = accelerated / LIBRARY
        variants.append(Variant(SPARSE_KERNELS, kernels, library=library, made_from=SPARSE))
    return variants
