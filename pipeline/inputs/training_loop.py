"""The user's own training: a function that the recipe names in ``recover.loop``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable
from mfac_compress.pipeline.recipe.schema import RecoverSection

ARGUMENTS = ("model", "splits", "handle")
_KEY = "recover.loop"


@dataclass(frozen=True, eq=False)
class TrainingLoop:
    """A function of (model, splits, handle), which trains the model in place.

    Args:
        name: As the recipe writes it. What the function consists of is in the run's code.
        function: Itself.
    """

    name: str
    function: Callable[..., Any]

    @property
    def digest(self) -> str:
        """Its name: see :class:`~mfac_compress.pipeline.inputs.code_sources.CodeSources`."""
        return self.name


def load_training_loop(section: RecoverSection, *, folder: Path) -> TrainingLoop | None:
    """Find the function that a recipe names; None where it names none.

    Args:
        section: The recipe's ``recover``.
        folder: Where relative file paths start: the recipe's folder.

    Raises:
        InputError: If it cannot be imported, or does not take the three arguments.
    """
    if section.loop is None:
        return None
    function = resolve_callable(section.loop, key=_KEY, folder=folder)
    check_takes(function, ARGUMENTS, key=_KEY, name=section.loop)
    return TrainingLoop(section.loop, function)
