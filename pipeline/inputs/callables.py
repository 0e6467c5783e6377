"""Finding the functions that a recipe names: ``package.module:callable`` or ``file.py:callable``.

Nothing is added to ``sys.path``: a module must be importable already (installed, or on
``PYTHONPATH``), a file is loaded from where it lies. A loaded file is kept in ``sys.modules`` under
a name made of its path and content, so what it defines can be pickled, and an edited file is
loaded anew.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from mfac_compress.pipeline.errors import EscapeError, InputError, describe
from mfac_compress.pipeline.inputs.code_sources import USER_FILE, files_watched
from mfac_compress.pipeline.quoting import with_article


@contextmanager
def user_code(*, reads_data: bool = False) -> Iterator[None]:
    """Run code of the user's: it can fail, but neither end the run nor move it.

    The working directory is put back, so that relative paths of the run stay what they were. Files
    that the code opens count as part of it.

    Args:
        reads_data: The files that it opens are samples, which are hashed on their own.
    Raises:
        EscapeError: In place of SystemExit and every other exception that is no ``Exception``, so
            that ``except Exception`` sees them. KeyboardInterrupt alone is left as it is.
    """
    folder = os.getcwd()
    try:
        with nullcontext() if reads_data else files_watched():
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as escape:
        raise EscapeError(escape).with_traceback(escape.__traceback__) from escape
    finally:
        os.chdir(folder)


def resolve_callable(spec: str, *, key: str, folder: Path) -> Callable[..., Any]:
    """Import what a recipe key names.

    Args:
        spec: ``package.module:callable`` or ``path/to/file.py:callable``; the callable may be
            dotted (``Net.small``).
        key: The recipe key that ``spec`` stands under, for messages.
        folder: Where relative file paths start: the recipe's folder.
    Returns:
        The callable.
    Raises:
        InputError: If the form is wrong, the file or module is missing or fails when imported, or
            the name in it is missing or not callable.
    """
    place, names = _split(spec, key)
    if _is_file(place):
        module = _load_file(_file_path(place, spec, key, folder), spec, key)
    else:
        module = _import_module(place, spec, key)
    found: Any = module
    for name in names.split("."):
        if not hasattr(found, name):
            raise InputError(f"{key} must name something in {place}. {_missing(found, name, spec)}")
        found = getattr(found, name)
    if not callable(found):
        raise InputError(
            f"{key} must name a function or a class. Got {spec!r}, which is "
            f"{with_article(type(found).__name__)}."
        )
    return found


def check_takes(
    function: Callable[..., Any], arguments: tuple[str, ...], *, key: str, name: str
) -> None:
    """Check, without a call, that a function takes these positional arguments.

    Raises:
        InputError: If it does not.
    """
    try:
        with user_code():  # of an object, by its comparison and its attributes
            signature = inspect.signature(function)
    except Exception:  # some that are written in C tell nothing of themselves
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise InputError(
            f"{key} must be a function of ({', '.join(arguments)}). Got {name!r}, which takes "
            f"{signature}: {error}."
        ) from error


def module_name(spec: str) -> str | None:
    """The module that ``package.module:callable`` names; None where it is a file, or malformed."""
    place = spec.rpartition(":")[0]
    return None if not place or _is_file(place) else place


def _split(spec: str, key: str) -> tuple[str, str]:
    # From the right, for the colon of a Windows drive.
    place, _, names = spec.rpartition(":")
    if not place or not all(name.isidentifier() for name in names.split(".")):
        raise InputError(
            f"{key} must be package.module:callable or path/to/file.py:callable. Got {spec!r}."
        )
    return place, names


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _file_path(place: str, spec: str, key: str, folder: Path) -> Path:
    path = (folder / Path(place).expanduser()).resolve()
    if path.suffix != ".py":
        raise InputError(f"{key} must name a .py file. Got {spec!r}. Write path/to/file.py:name.")
    if not os.path.isfile(path):  # unlike Path's, False for a name that is too long
        raise InputError(
            f"{key} must name a file that exists. Got {spec!r}, looked for {path}. "
            "Relative paths start at the recipe's folder."
        )
    return path


def _load_file(path: Path, spec: str, key: str) -> ModuleType:
    with files_watched():
        content = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()
    name = f"{USER_FILE}{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        with user_code():
            module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(_failed_import(error, spec, key)) from error
    return module


def _import_module(name: str, spec: str, key: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(
            f"{key} must be package.module:callable or path/to/file.py:callable. Got {spec!r}."
        )
    try:
        with user_code():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only where the named module itself is missing; else one of its own imports is.
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"{key} must name a module that Python can import. Got {spec!r}, and there is no "
                f"module {error.name!r}. Install it, put its folder on PYTHONPATH, or write "
                "path/to/file.py:callable."
            ) from error
        raise InputError(_failed_import(error, spec, key)) from error
    except Exception as error:
        raise InputError(_failed_import(error, spec, key)) from error


def _failed_import(error: BaseException, spec: str, key: str) -> str:
    hint = "Fix it, or guard what should not run on import with `if __name__ == '__main__':`."
    if isinstance(error, ImportError):
        hint = "Install what is missing, or put its folder on PYTHONPATH."
        if "relative import" in str(error):
            hint = "A single file has no package: name it as package.module:callable."
    return f"{key} must name code that can be imported. {spec!r} raised {describe(error)}. {hint}"


def _missing(owner: Any, name: str, spec: str) -> str:
    public = [
        other
        for other in dir(owner)
        if not other.startswith("_") and callable(getattr(owner, other, None))
    ]
    near = get_close_matches(name, public, n=3)
    advice = f" Did you mean {', '.join(near)}?" if near else ""
    return f"Got {spec!r}, and it has no {name!r}.{advice}"
