"""The run directory: published results above, the stages' cache below."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mfac_compress.pipeline.cache import MANIFEST
from mfac_compress.pipeline.errors import InputError

RESULTS = (
    "report.json",
    "report.md",
    "manifest.json",
    "recipe.resolved.yaml",
    "model.onnx",
    "model.onnx.data",
    "dense.onnx",
    "dense.onnx.data",
    "model.safetensors",
    "masks.safetensors",
)
_CACHE = ".cache"
_LOCK = "run.lock"


class RunDirectory:
    """Where a run writes.

    Args:
        path: The directory; need not exist.

    Raises:
        InputError: If the path is a file, or a directory of somebody else's files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / _CACHE
        if path.exists() and not path.is_dir():
            raise InputError(f"-o must be a directory. Got the file {path}. Name another.")
        if path.is_dir() and any(path.iterdir()) and not self.cache.is_dir():
            raise InputError(
                f"-o must be a new, an empty or a run's own directory. Got {path}, which holds "
                "other files. Name another."
            )

    @contextmanager
    def locked(self) -> Iterator["RunDirectory"]:
        """Keep other runs out of the directory.

        Raises:
            InputError: If another run is writing here, or the directory can not be made.
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
        except OSError as error:
            raise InputError(f"-o must be writable. Got {self.path}: {error.strerror}.") from error
        try:
            yield self
        finally:
            lock.release()

    def clear(self) -> None:
        """Remove the results of an earlier run, so that none can pass for this one's."""
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def take_all(self, folder: Path) -> None:
        """Copy an artefact's files here. Not links: who edits a result must not edit the cache."""
        for file in folder.iterdir():
            if file.name != MANIFEST:
                shutil.copy2(file, self.path / file.name)

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        with tempfile.TemporaryDirectory(dir=self.cache) as scratch:
            draft = Path(scratch) / name
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, self.path / name)
