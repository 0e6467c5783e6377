"""Switch off the telemetry and temporary files of the libraries below. Imported before them.

Newer releases of ONNX Runtime send telemetry to Microsoft from their import on, and write ``.ses``
to the folder of temporary files. PyTorch's compiler creates a folder there on import, which stays
empty unless something is compiled.
"""

import atexit
import os
from contextlib import suppress

# See docs/Privacy.md of ONNX Runtime. A value set by the user is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def _remove_if_empty() -> None:
    """Remove the folder of compiled code if PyTorch chose it and it is empty."""
    if folder := os.environ.get(_COMPILED):  # PyTorch writes its choice to this variable
        with suppress(OSError):
            os.rmdir(folder)


if _COMPILED not in os.environ:
    atexit.register(_remove_if_empty)
