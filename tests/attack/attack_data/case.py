"""What an attack with data is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED = ("refused",)
LOADED = ("loaded",)
EITHER = ("refused", "loaded")


@dataclass(frozen=True)
class Case:
    """One piece of hostile data.

    Attributes:
        name: What is wrong with it.
        make: Writes it to an empty folder and returns the recipe's ``data`` section.
        expected: What may come of it.
    """

    name: str
    make: Callable[[Path], dict[str, Any]]
    expected: tuple[str, ...] = REFUSED


def arrays_section(**options: Any) -> dict[str, Any]:
    """A recipe's ``data`` for ``calibration.npz`` and ``validation.npz``."""
    splits = {name: {"path": f"{name}.npz"} for name in ("calibration", "validation")}
    return {"source": "arrays", "splits": splits, **options}


def pictures_section(**options: Any) -> dict[str, Any]:
    """A recipe's ``data`` for the folders ``calibration`` and ``validation``."""
    splits = {name: {"path": name} for name in ("calibration", "validation")}
    return {"source": "image_folder", "splits": splits, **options}
