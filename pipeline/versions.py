"""Which recipe, tool and libraries made a result."""

import platform
from functools import cache
from importlib.metadata import version
from typing import Any

from mfac_compress.pipeline.digest import content_key, package_digest
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.schema import Recipe

# Those that compute, and those that write or measure files: the rest of setup.cfg's requirements
# read the recipe, talk to the terminal or to the system.
_LIBRARIES = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "scipy",
    "safetensors",
    "zstandard",
)


def tool_version() -> str:
    """The version of mfac-compress."""
    return version("mfac-compress")


def library_versions() -> dict[str, str]:
    """Python and the libraries that results depend on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


@cache
def loaded_environment() -> dict[str, Any]:
    """The package's sources and the libraries' versions when this process loaded them.

    Taken once, as the modules that run stages are imported: what is installed later does not run
    here, and must not be in the key of what is made here.
    """
    return _environment()


def check_environment() -> None:
    """Check that what is installed is what this process has loaded.

    Raises:
        InputError: If it was installed anew meanwhile.
    """
    if _environment() != loaded_environment():
        raise InputError(
            "mfac-compress and the libraries must be those that this Python process has loaded. "
            "They were installed anew, or edited, since. Start Python anew (or restart the "
            "notebook's kernel)."
        )


def is_package_loaded() -> bool:
    """Whether the package's sources on disk are those that this process has loaded."""
    return package_digest() == loaded_environment()["package"]


def _environment() -> dict[str, Any]:
    return {"package": package_digest(), "libraries": library_versions()}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the sections that make the model in float; not of how it is run and judged."""
    run = {"threads", "memory_budget", "cache", "cache_size", "rank_timeout"}
    how = {
        "run": run,
        "data": {"splits": {"validation"}, "max_overlap": True},
        "task": {"metric", "direction", "range", "further_metrics"},
        "export": {"sparse_kernels"},
        "quantize": True,
        "validate_": True,
    }
    return content_key(recipe.model_dump(mode="json", exclude=how))
