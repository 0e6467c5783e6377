"""The files that a model could ship as."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variant:
    """One form of a model as an ONNX file, by its name in a report.

    Each measurement takes a list of variants and returns its results by name.

    Args:
        name: For example ``"sparse"``; unique among the variants of a model.
        path: The ONNX file.
        library: Shared library of the custom operators that the file needs.
        made_from: Name of the variant whose graph was rewritten into this one.
    """

    name: str
    path: Path
    library: Path | None = None
    made_from: str | None = None
