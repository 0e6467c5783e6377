"""Replace an ONNX file atomically, once the new one is checked."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mfac_compress.export.external_data import data_path


def replace_model(
    path: Path, save: Callable[[Path], None], check: Callable[[Path], object]
) -> None:
    """Write and check a model in a temporary folder beside ``path``, then move it there.

    Args:
        path: File, in a folder that exists. On failure it is not changed.
        save: Writes the model to the given path, and tensors that are too large for one file to
            that path + ``.data``.
        check: Raises any exception if the model at the given path is not valid.
    Raises:
        ValueError: If ``path`` + ``.data`` belongs to something else.
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
        data.unlink(missing_ok=True)  # of a larger model that was here before
