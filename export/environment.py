"""Switch off the telemetry and temporary files of the libraries below. Imported before them.

Newer releases of ONNX Runtime send telemetry to Microsoft from their import on, and write ``.ses``
to the folder of temporary files. PyTorch's compiler creates a folder there on import, which stays
empty unless something is compiled.
"""

import atexit
import os
import tempfile
from contextlib import suppress

# See docs/Privacy.md of ONNX Runtime. A value set by the user is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _remove_if_empty() -> None:
    """Remove the folder of compiled code if PyTorch chose it and it is empty."""
    # PyTorch writes its choice to this variable, perhaps before this module is imported.
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if os.path.dirname(folder) == tempfile.gettempdir() and "torchinductor_" in folder:
        with suppress(OSError):
            os.rmdir(folder)


atexit.register(_remove_if_empty)
