"""A pool of artefacts that runs share (`run.cache`), each under its stage's name and its key.

The pool and the runs hold hard links of the same files. So a run that has linked an artefact into
its own cache keeps it, whatever goes from the pool; nothing is locked while it is looked up, and no
one counts who uses what. Files in the pool are never written to: they are linked or removed.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.recipe.schema import Recipe

_TAG = "CACHEDIR.TAG"
_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# Artefacts that runs of mfac-compress share (run.cache). All of it can be removed.
# For this file see https://bford.info/cachedir/
"""
_LOCK = "pool.lock"
_NEW, _OLD = ".making-entry", ".removed-entry"
_LONGEST_WAIT = 600  # seconds; a copy to another disk may take one or two minutes
_ENTRY = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{64}")


class Pool:
    """The folder that runs share.

    Args:
        folder: Where; made if it is not there.
        limit: Most bytes in it. What was not used for the longest time goes first.
        where: How messages name the recipe's key.
        warn: Is told what could not be put into the pool: no reason to end a run.

    Raises:
        InputError: If the folder cannot be used, or is one of somebody else's files.
    """

    def __init__(self, folder: Path, limit: int, where: str, warn: Callable[[str], None]) -> None:
        self.folder, self._limit, self._where, self._warn = folder, limit, where, warn
        _check_usable(folder, where)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if not (folder / _TAG).is_file():
                    (folder / _TAG).write_text(_TAG_TEXT, encoding="utf-8")
                self._shrink()
        except (OSError, ValueError) as error:
            raise InputError(_unusable(folder, where, error)) from error

    def take(self, stage: str, key: str, place: Path) -> bool:
        """Link an artefact's files into a folder, unchecked; what is no ordinary file is left out.

        Returns:
            Whether there is one; not if another run removes it meanwhile.
        """
        entry = self._entry(stage, key)
        if not _is_folder(entry):
            return False
        with suppress(OSError):
            _link_all(entry, place)
            os.utime(entry)
        return _is_folder(entry)

    def give(self, stage: str, key: str, made: Path, is_sound: Callable[[Path], bool]) -> bool:
        """Put an artefact into the pool, unless there is one by now that can be used.

        Args:
            stage: Name of the stage.
            key: Hash of all that the artefact depends on.
            made: Folder of the artefact.
            is_sound: Whether the artefact in a folder can be used.

        Returns:
            Whether there was one.
        """
        entry = self._entry(stage, key)
        size = _size(made)
        if size > self._limit:
            self._warn(
                f"{stage}: not shared. {size:,} bytes exceed run.cache_size ({self._limit:,})"
            )
            return False
        try:
            with self._locked():
                was_there = self._is_sound(entry, is_sound)
                if not was_there:
                    _link_all(made, self.folder / _NEW)
                    self._remove(entry)
                    os.rename(self.folder / _NEW, entry)
                os.utime(entry)
                self._shrink()
                return was_there
        except OSError as error:
            self._warn(f"{stage}: not shared. {self.folder}: {error.strerror or error}")
            return False

    def note_use(self, stage: str, key: str) -> bool:
        """Note that an artefact is used, of which the run has its own links.

        Returns:
            Whether it is in the pool.
        """
        entry = self._entry(stage, key)
        if not _is_folder(entry):
            return False
        with suppress(OSError):
            os.utime(entry)
        return True

    def _is_sound(self, entry: Path, is_sound: Callable[[Path], bool]) -> bool:
        """Whether the files that :meth:`take` would link can be used."""
        if not _is_folder(entry):
            return False
        _link_all(entry, self.folder / _NEW)
        try:
            return is_sound(self.folder / _NEW)
        finally:
            remove(self.folder / _NEW)

    def _entry(self, stage: str, key: str) -> Path:
        entry = self.folder / f"{stage}-{key}"
        assert _ENTRY.fullmatch(entry.name)
        return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one run at a time change the pool; what a killed one left half done goes first."""
        with FileLock(self.folder / _LOCK, timeout=_LONGEST_WAIT):
            remove(self.folder / _NEW)
            remove(self.folder / _OLD)
            yield

    def _remove(self, entry: Path) -> None:
        """Take an entry away as a whole: no one may find half of it."""
        with suppress(FileNotFoundError):
            os.rename(entry, self.folder / _OLD)
            remove(self.folder / _OLD)

    def _shrink(self) -> None:
        """Remove what was not used for the longest time, until the rest is within the limit."""
        entries = [path for path in self.folder.iterdir() if _ENTRY.fullmatch(path.name)]
        used = {entry: entry.lstat().st_mtime_ns for entry in entries}
        sizes = {entry: _size(entry) for entry in entries}
        excess = sum(sizes.values()) - self._limit
        for entry in sorted(entries, key=used.__getitem__):
            if excess <= 0:
                return
            self._remove(entry)
            excess -= sizes[entry]


def open_pool(recipe: Recipe, warn: Callable[[str], None]) -> Pool | None:
    """The pool that a recipe names; None where it names none.

    Raises:
        InputError: If `run.cache` cannot be used.
    """
    if recipe.run.cache is None:
        return None
    folder = recipe.source.resolve(recipe.run.cache)
    return Pool(folder, recipe.run.cache_size, recipe.where("run.cache"), warn)


def check_pool(recipe: Recipe) -> None:
    """Check, without writing anything, that :func:`open_pool` can open it.

    Raises:
        InputError: If `run.cache` cannot be used.
    """
    if recipe.run.cache is not None:
        _check_usable(recipe.source.resolve(recipe.run.cache), recipe.where("run.cache"))


def _check_usable(folder: Path, where: str) -> None:
    """Check that a folder is none of somebody else's files, and can be written to.

    Raises:
        InputError: If it is none that can be written to, or holds somebody else's files.
    """
    try:
        is_pool = (folder / _TAG).is_file()
        # The lock comes before the tag: another run may have begun to make it a pool.
        others = {path.name for path in folder.iterdir()} - {_LOCK} if folder.exists() else set()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        is_writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise InputError(_unusable(folder, where, error)) from error
    if others and not is_pool:
        raise InputError(
            f"{where}: must be a new, an empty or a cache's own folder. Got {folder}, which holds "
            "other files. Name another."
        )
    if not is_writable:
        raise InputError(_unusable(folder, where, f"{nearest} cannot be written to"))


def _unusable(folder: Path, where: str, reason: Exception | str) -> str:
    reason = getattr(reason, "strerror", None) or reason
    return (
        f"{where}: must be a folder that can be written to. Got {folder}: {reason}. Name another, "
        "or leave it out."
    )


def _link_all(source: Path, target: Path) -> None:
    """Link all ordinary files of a folder into another; copy them where links cannot be made.

    Raises:
        OSError: If a file cannot be read or written.
    """
    target.mkdir(exist_ok=True)
    for folder, _, names in os.walk(source, onerror=_raise):
        place = target / Path(folder).relative_to(source)
        place.mkdir(exist_ok=True)
        for name in names:
            file = Path(folder) / name
            if stat.S_ISREG(file.lstat().st_mode):
                _link(file, place / name)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place, follow_symlinks=False)
    except OSError:  # on another file system, or one without links, or a file of another user's
        shutil.copyfile(file, place, follow_symlinks=False)


def _raise(error: OSError) -> None:
    raise error


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths)


def _is_folder(path: Path) -> bool:
    """Whether it is one itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; what a link leads to stays."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
