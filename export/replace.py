"""Put an ONNX file in its place: checked, and whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mfac_compress.export.external_data import data_path


def replace_model(
    path: Path, save: Callable[[Path], None], check: Callable[[Path], object]
) -> None:
    """Write and check a model beside its place, then move it there.

    Args:
        path: File, in a folder that exists. On failure it stays as it was.
        save: Writes the model to the path that it is given, and what is too large for one file to
            that path + ``.data``.
        check: Raises what it likes if the model at the path that it is given is not valid.
    Raises:
        ValueError: If ``path`` + ``.data`` is taken by something else.
    """
    data = data_path(path)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save(draft)
        check(draft)
        external = draft.with_name(data.name).is_file()
        if external:
            os.replace(draft.with_name(data.name), data)
        os.replace(draft, path)
    if not external:
        data.unlink(missing_ok=True)  # of a larger model before
