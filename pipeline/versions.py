"""Versions of this tool and of what its results depend on."""

import platform
from importlib.metadata import version

_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")


def tool_version() -> str:
    """The version of mfac-compress."""
    return version("mfac-compress")


def library_versions() -> dict[str, str]:
    """Python and the libraries that results depend on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
