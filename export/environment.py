"""What the libraries below leave behind or send out, unless they are told. Imported before them.

Newer releases of ONNX Runtime report their use to Microsoft from the import on, and write ``.ses``
to the folder of temporary files. PyTorch's compiler, on import, makes a folder there, which stays
empty unless something is compiled.
"""

import atexit
import os
from contextlib import suppress

# See docs/Privacy.md of ONNX Runtime. Who has set the variable is not overruled.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def _remove_if_empty() -> None:
    """Remove the folder of compiled code if it was PyTorch that chose it and nothing is in it."""
    if folder := os.environ.get(_COMPILED):  # PyTorch notes the folder where it looks for it
        with suppress(OSError):
            os.rmdir(folder)


if _COMPILED not in os.environ:
    atexit.register(_remove_if_empty)
