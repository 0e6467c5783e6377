"""The run directory: published results above, the stages' cache below."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mfac_compress.pipeline.digest import file_digest
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import LIBRARY, MASKS, ONNX_FILES, RANGES, WEIGHTS
from mfac_compress.pipeline.run.artefact import Artefact

RESULTS = (
    "report.json",
    "report.md",
    "manifest.json",
    "recipe.resolved.yaml",
    *(f"{name}{data}" for name in ONNX_FILES.values() for data in ("", ".data")),
    LIBRARY.as_posix(),
    WEIGHTS,
    MASKS,
    RANGES,
)
_CACHE = ".cache"
_LOCK = "run.lock"
_DRAFT = ".draft-"


class RunDirectory:
    """Where a run writes.

    Args:
        path: The directory; need not exist.

    Raises:
        InputError: If the path is a file, or a directory of somebody else's files.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, since the user's code may change the working directory.
        self.path = path = path.absolute()
        self.cache = path / _CACHE
        try:
            is_file = path.exists() and not path.is_dir()
            foreign = path.is_dir() and not self._is_own() and any(path.iterdir())
        except OSError as error:
            raise InputError(_unusable(path, error)) from error
        if is_file:
            raise InputError(f"-o must be a directory. Got the file {path}. Name another.")
        if foreign:
            raise InputError(
                f"-o must be a new, an empty or a run's own directory. Got {path}, which holds "
                "other files. Name another."
            )

    def _is_own(self) -> bool:
        """Whether a run has made the cache, or it is empty.

        Other programs call theirs the same: the folder of a model that was downloaded from a hub
        has one, and so has each home directory.
        """
        if not self.cache.is_dir():
            return False
        return (self.cache / _LOCK).is_file() or not any(self.cache.iterdir())

    def check_spares(self, inputs: Mapping[str, Path]) -> None:
        """Check that no result that a run removes here is what it is to read.

        Args:
            inputs: Files and folders that the run reads, by what they are.

        Raises:
            InputError: If one is, or is in such a folder.
        """
        removed = [self.path / name for name in RESULTS]
        for what, path in inputs.items():
            read = [path / name for name in RESULTS] if os.path.isdir(path) else [path]
            for file in read:
                if any(_is_same(file, result) for result in removed):
                    raise InputError(
                        f"-o must not be the directory of {what}: a run removes earlier results "
                        f"from its directory, {file} among them. Name another directory."
                    )

    @contextmanager
    def locked(self) -> Iterator["RunDirectory"]:
        """Keep other runs out of the directory.

        Raises:
            InputError: If another run is writing here, or the directory cannot be made.
        """
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.cache / _LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"-o must not be in use. Another run is writing to {self.path}. Wait for it, or "
                "name another directory."
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(_unusable(self.path, error)) from error
        try:
            yield self
        finally:
            lock.release()

    @contextmanager
    def exclusive(self) -> Iterator["RunDirectory"]:
        """Lock the directory and clear it, once more if the run fails: of what is in place then.

        A directory that was not there is taken away again, unless a stage has finished.

        Raises:
            InputError: As :meth:`locked` does.
        """
        was_there = self.path.is_dir()
        with self.locked():
            self.clear()
            try:
                yield self
            except BaseException:
                self.clear()
                if not was_there:
                    # While it is locked: a run that starts meanwhile must not lose its directory.
                    self._remove_unused()
                raise

    def _remove_unused(self) -> None:
        """Remove the directory if it holds nothing but the lock."""
        with suppress(OSError):
            if [entry.name for entry in self.cache.iterdir()] == [_LOCK]:
                shutil.rmtree(self.cache)
            self.path.rmdir()

    def clear(self) -> None:
        """Remove the results of an earlier run, so that none can pass for this one's.

        Raises:
            InputError: If something else stands in the place of a result.
        """
        try:
            self._clear()
        except OSError as error:
            raise InputError(
                f"-o must be a directory in which results can be replaced. Of {self.path}, "
                f"{error.filename} cannot be removed: {error.strerror}. Take it away, or name "
                "another directory."
            ) from error

    def _clear(self) -> None:
        folders = {Path(name).parent.name for name in RESULTS} - {""}
        for name in folders:
            if (self.path / name).is_symlink() or (self.path / name).is_file():
                (self.path / name).unlink()  # what a link leads to is not ours
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)
        for name in folders:
            with suppress(OSError):  # it is not there, or holds what is not ours
                (self.path / name).rmdir()
        for left in self.path.glob(f"{_DRAFT}*"):  # by a run that was killed
            shutil.rmtree(left)

    def publish(self, artefact: Artefact) -> None:
        """Copy an artefact's files here. Not links: who edits a result must not edit the cache.

        Raises:
            OSError: If a copy is not what the artefact holds: what ships is what was measured.
        """
        for name, digest in artefact.files.items():
            with self._atomic_write(name) as draft:
                shutil.copyfile(artefact.folder / name, draft)
                if file_digest(draft) != digest:
                    raise OSError(f"{name} must be copied as it was made. It changed meanwhile.")

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        with self._atomic_write(name) as draft:
            draft.write_text(text, encoding="utf-8")

    @contextmanager
    def _atomic_write(self, name: str) -> Iterator[Path]:
        """A path to write to; the file takes its place when it is whole, or never."""
        # Not in the cache, which may be a link to another disk, from where nothing can be moved.
        with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=self.path) as scratch:
            draft, place = Path(scratch) / Path(name).name, self.path / name
            yield draft
            place.parent.mkdir(exist_ok=True)
            os.replace(draft, place)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    with suppress(OSError, ValueError):
        return os.path.samefile(path, other)
    return False


def _unusable(path: Path, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"-o must be a directory that can be written to. Got {path}: {reason}. Name another."
