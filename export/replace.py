"""Put an ONNX file in its place: checked, and whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx

from mfac_compress.export.external_data import data_path


def replace_model(path: Path, save: Callable[[Path], None]) -> None:
    """Write and check a model beside its place, then move it there.

    Args:
        path: File, in a folder that exists. On failure it stays as it was.
        save: Writes the model to the path that it is given, and what is too large for one file to
            that path + ``.data``.
    Raises:
        onnx.checker.ValidationError: If the ONNX checker refuses it.
        ValueError: If ``path`` + ``.data`` is taken by something else.
    """
    data = data_path(path)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save(draft)
        onnx.checker.check_model(draft)
        external = draft.with_name(data.name).is_file()
        if external:
            os.replace(draft.with_name(data.name), data)
        os.replace(draft, path)
    if not external:
        data.unlink(missing_ok=True)  # of a larger model before
