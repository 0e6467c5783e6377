"""Which recipe, tool and libraries made a result."""

import platform
from importlib.metadata import version

from mfac_compress.pipeline.digest import content_key
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


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the sections that make the model; not of how it is run and judged."""
    run = {"threads", "memory_budget", "cache", "cache_size", "rank_timeout"}
    how = {
        "run": run,
        "data": {"splits": {"validation"}, "max_overlap": True},
        "task": {"metric", "direction", "range"},
        "export": {"sparse_kernels"},
        "validate_": True,
    }
    return content_key(recipe.model_dump(mode="json", exclude=how))
