"""Recipes, stages, gates and reports: from a trained model to a verdict."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfac_compress.pipeline.compression import compress
    from mfac_compress.pipeline.recipe.file import load_recipe

__all__ = ["compress", "load_recipe"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers `--help` without PyTorch."""
    if name == "compress":
        from mfac_compress.pipeline.compression import compress

        return compress
    if name == "load_recipe":
        from mfac_compress.pipeline.recipe.file import load_recipe

        return load_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
