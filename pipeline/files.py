"""Files that a user names: where they are, and that they are files."""

import os
import stat
from pathlib import Path

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import shown


def resolved(given: str, folder: Path) -> Path:
    """Give the absolute path of a path written in the recipe, whether or not it exists.

    Args:
        given: As written; ``~`` is the home folder.
        folder: Where relative paths start: the recipe's folder.
    Returns:
        The path. Where its symbolic links run in a circle, it does not exist.
    """
    # Path.resolve() raises on such a circle.
    return Path(os.path.realpath(folder / os.path.expanduser(given)))


def check_exists(path: Path, given: str, key: str, what: str = "file or folder") -> None:
    """Refuse a path at which there is nothing.

    Args:
        path: Absolute path.
        given: As the recipe writes it.
        key: The recipe key that it stands under.
        what: What it must be: a folder, or either.
    Raises:
        InputError: If there is none.
    """
    found = os.path.isdir(path) if what == "folder" else os.path.exists(path)
    if not found:
        raise InputError(
            f"{key} must be a {what} that exists. Got {shown(given)!r}, looked for {shown(path)}. "
            "Relative paths start at the recipe's folder."
        )


def check_regular(path: str | os.PathLike[str], what: str) -> int:
    """Refuse what is no ordinary file: a pipe would be waited for, a device has no end.

    Args:
        path: Of the file, or of a link to it.
        what: What it is for, for the message: a recipe key, ``"an image"``, ``"The model"``.
    Returns:
        Its size in bytes.
    Raises:
        InputError: If it is something else.
        OSError: If it is missing or cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        advice = "Name a file in it." if is_folder else "Write its content to a file."
        raise InputError(
            f"{what} must be an ordinary file. {shown(path)} is {_kind(found.st_mode)}. {advice}"
        )
    return found.st_size


def check_absent(path: Path, option: str) -> None:
    """Refuse to write a file where something is.

    Raises:
        InputError: If something is there.
    """
    if os.path.lexists(path):
        raise InputError(
            f"{option} must be a file that is not there. Got {path}. Remove it, or name another."
        )


def write_new(path: Path, text: str, option: str) -> None:
    """Write a text file that is not there yet.

    Args:
        path: The file.
        text: Its content.
        option: The option that names it, for messages.

    Raises:
        InputError: If something is there, or it cannot be written.
    """
    check_absent(path, option)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option} must be a file to write. Got {path}: {reason}.") from error


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "of another kind")
