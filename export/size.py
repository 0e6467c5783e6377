"""The size of ONNX files, on disk and compressed for transport."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from mfac_compress.export.external_data import data_files
from mfac_compress.export.variant import Variant

# Fixed, so that sizes can be compared between runs. On pruned weights level 19 saves 4 to 8% more,
# at a twentieth of the speed: minutes for a large model.
_LEVEL = 9


@dataclass(frozen=True)
class FileSize:
    """Bytes of an ONNX file together with its external data."""

    raw_bytes: int
    """As the files are."""
    compressed_bytes: int
    """With zstandard at level 9, one thread, each file separately."""
    ratio: float
    """Compressed bytes / those of the reference."""
    library_bytes: int
    """Of the shared library that the file needs; in none of the figures above. 0: it needs none."""


def compare_size(reference: Variant, variants: Sequence[Variant]) -> dict[str, FileSize]:
    """Measure ONNX files with their external data.

    Args:
        reference: The file to compare with.
        variants: The other files.
    Returns:
        Sizes by name, those of the reference too.
    Raises:
        ValueError: If a file is missing or is not ONNX.
    """
    measured = {variant.name: _bytes_of(variant.path) for variant in (reference, *variants)}
    return {
        variant.name: FileSize(
            *measured[variant.name],
            ratio=measured[variant.name][1] / measured[reference.name][1],
            library_bytes=variant.library.stat().st_size if variant.library else 0,
        )
        for variant in (reference, *variants)
    }


def _bytes_of(path: Path) -> tuple[int, int]:
    """Return the bytes of a file and its external data, raw and compressed."""
    counts = []
    for file in _files(path):
        with file.open("rb") as source, open(os.devnull, "wb") as sink:
            counts.append(zstandard.ZstdCompressor(level=_LEVEL).copy_stream(source, sink))
    raw, compressed = map(sum, zip(*counts, strict=True))
    return raw, compressed


def _files(path: Path) -> list[Path]:
    """List the file and its external data, each once."""
    try:
        return [path, *sorted(data_files(path))]
    except Exception as error:
        raise ValueError(
            f"There must be an ONNX file at {path}. Reading it failed with "
            f"{type(error).__name__}: {error}. Export it again."
        ) from error
