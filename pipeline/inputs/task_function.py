"""Losses and metrics that are the user's own functions: found by their names, and called."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mfac_compress.mfac.batch import Tree, map_tensors
from mfac_compress.pipeline.errors import EscapeError, InputError, describe
from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable, user_code
from mfac_compress.pipeline.quoting import type_and_shape

Function = Callable[..., Any]


def resolve_function(
    name: str, *, built_in: Collection[str], key: str, folder: Path
) -> Function | None:
    """Import a function of (outputs, targets).

    Args:
        name: A built-in name, or ``module:callable``.
        built_in: Names that stand for no function of the user's.
        key: The recipe key that the name stands under, for messages.
        folder: Where relative file paths start: the recipe's folder.
    Returns:
        The function; None for a built-in name.
    Raises:
        InputError: If it cannot be imported, or takes other arguments.
    """
    if name in built_in:
        return None
    function = resolve_callable(name, key=key, folder=folder)
    check_takes(function, ("outputs", "targets"), key=key, name=name)
    return function


def call_function(
    function: Function | None,
    outputs: Tree,
    targets: Tree,
    *,
    key: str,
    name: str,
    error_class: type[InputError] = InputError,
) -> Any:
    """Call one that was found.

    Args:
        function: Of (outputs, targets).
        outputs: Tree of tensors.
        targets: Tree of tensors.
        key: Its recipe key, for messages.
        name: What stands there.
        error_class: Of what is raised where it fails.
    Returns:
        What it returns, unchecked.
    Raises:
        InputError: If it raises, or ends the program.
    """
    assert function is not None
    given = f"outputs {type_and_shape(outputs)} and targets {type_and_shape(targets)}"
    # New dicts of the same tensors: taking a key out of one changes nothing for others.
    arguments = map_tensors(lambda tensor: tensor, (outputs, targets))
    try:
        with user_code():
            return function(*arguments)
    except Exception as error:
        raised = InputError if isinstance(error, EscapeError) else error_class
        raise raised(
            f"{key} must be a function of (outputs, targets). {name!r} raised {describe(error)} "
            f"for {given}."
        ) from error
