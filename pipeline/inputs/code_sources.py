"""What the user's code is made of: source files of loaded modules, and files that the code opens.

A stage's result depends on all of the user's code that it runs: the factory, the loss, the metric,
and every module that these import, be it in the middle of a function. So a run takes stock of the
modules that are loaded outside of the installed packages, and of the files that are opened while
the user's code runs. What no one can see from here: the environment, the network, and files that
native code opens.
"""

import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import source_from_cache
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from mfac_compress.pipeline.digest import content_key, file_digest
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.bytecode import definitions_digest

NOT_COVERED = (
    "environment variables, the network, files that native code opens, files that a data set reads "
    "(the samples themselves are hashed), and packages that pip installed"
)
"""What else the user's code could depend on, in words for the report."""

_OWN = str(Path(__file__).parents[2])
# The last one is in a checkout that is installed as editable. PyTorch reads the entry points of every
# package once in a process, be it while the user's code runs.
_OWN_NAMES = ("export", "mfac", "pipeline", "mfac_compress.egg-info")
_OWN_FOLDERS = tuple(f"{_OWN}{os.sep}{name}{os.sep}" for name in _OWN_NAMES)
_NOT_FILES = ("/dev/", "/proc/", "/sys/")

CHANGED = "changed during the run"
"""Stands for the digest of a file that did not stay the same: no file has it."""


@dataclass(frozen=True)
class CodeSources:
    """The files that the user's code is made of.

    Attributes:
        files: SHA-256 in hex by absolute path, in the order of the paths.
        unseen: Names of what the code refers to and whose content cannot be hashed: with any of
            them, no earlier result can be reused.
        modules: Those that the recipe names, or that define the model's layers.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    modules: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Changes where any of the files does."""
        return content_key({"files": dict(self.files), "unseen": self.unseen})

    def with_later(self) -> "CodeSources":
        """Add what has been loaded or opened since; what was there before is not read again.

        Raises:
            InputError: If the file of a module was edited since it was imported.
        """
        now = present_sources(self.modules)
        unseen = dict.fromkeys((*self.unseen, *now.unseen))
        return replace(self, files={**now.files, **self.files}, unseen=tuple(unseen))

    def since(self) -> dict[str, str]:
        """What is not as it was, by path: a result that was made meanwhile depends on it too.

        Returns:
            SHA-256 of the files that have been loaded or opened since, and ``CHANGED`` for each
            file, new or not, that has been written to since it was looked at.
        """
        now, edited = _files_now(self.modules)
        if "__main__" in self.files:
            now["__main__"] = definitions_digest(sys.modules["__main__"])[0]
        later = {path: digest for path, digest in now.items() if path not in self.files}
        for path, digest in self.files.items():
            if (now[path] if path in now else _digest(path)) != digest:
                edited.add(path)
        return later | dict.fromkeys(edited, CHANGED)


USER_FILE = "mfac_compress_user_"
"""How the names of modules begin that are loaded from a file which the recipe names."""

_seen: WeakKeyDictionary[ModuleType, str | None] = WeakKeyDictionary()


_Stamp = tuple[int, int, int, int] | None


class _Opened:
    """Files that the user's code opens, as an audit hook sees them."""

    def __init__(self) -> None:
        self.paths: dict[str, _Stamp] = {}
        self.depth = 0
        self._hooked = False

    def hook(self) -> None:
        """Install the audit hook, which stays for the life of the process, once."""
        if not self._hooked:
            sys.addaudithook(self._on_event)
            self._hooked = True

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self.depth:
            return
        path, mode, flags = arguments
        written = mode is not None and set(mode) & set("wax+")
        written = written or (mode is None and flags & (os.O_WRONLY | os.O_RDWR))
        if not written and isinstance(path, str | bytes):
            source = _source_of(os.path.abspath(os.fsdecode(path)))
            if source not in self.paths:
                self.paths[source] = _stamp(source)

    def edited(self) -> set[str]:
        """The files that have been written to, or replaced, since they were first opened."""
        stamps = self.paths.items()
        return {path for path, stamp in stamps if stamp is not None and _stamp(path) != stamp}


def _stamp(path: str) -> _Stamp:
    """What changes when a file is written to, or replaced; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _source_of(path: str) -> str:
    """The source of compiled code, where it is there: Python may read the one or the other."""
    if not path.endswith(".pyc"):
        return path
    try:
        source = source_from_cache(path)
    except ValueError:  # it lies where no source is looked for
        return path
    return source if os.path.isfile(source) else path


_opened = _Opened()


@contextmanager
def files_watched() -> Iterator[None]:
    """Note the files that are opened for reading meanwhile."""
    _opened.hook()
    _opened.depth += 1
    try:
        yield
    finally:
        _opened.depth -= 1


def forget_opened() -> None:
    """Begin a run: what an earlier run of this process opened is not its code."""
    _opened.paths.clear()


def present_sources(modules: Iterable[str] = ()) -> CodeSources:
    """Take stock of the user's code as it is loaded now.

    Args:
        modules: Names of modules that the recipe names, or that define the model's layers. What
            they define is taken from memory where they have no file, as in a notebook; and where
            one is an installed package, that package's loaded modules count as the user's.
    Returns:
        The files of all loaded modules outside the installed packages, and those that the user's
        code has opened.
    """
    named = frozenset(modules)
    files, edited = _files_now(named)
    for module, path in _loaded(named):
        _check_as_loaded(module, path, files.get(path))
    unseen = sorted(edited)
    main = sys.modules["__main__"]
    if "__main__" in named and _file_of(main) is None:  # a notebook
        files["__main__"], names = definitions_digest(main)
        unseen += names
    return CodeSources(files, tuple(unseen), named)


def _files_now(named: frozenset[str]) -> tuple[dict[str, str], set[str]]:
    """Digests of the user's files by path, in order; and those that were written to meanwhile."""
    # Python itself opens the script that it runs, for the lines of a warning.
    script = None if "__main__" in named else _file_of(sys.modules["__main__"])
    opened = {path for path in _opened.paths if _counts(path) and path != script}
    modules = list(_loaded(named))
    paths = sorted(opened | {path for _, path in modules})
    files = {path: digest for path in paths if (digest := _digest(path)) is not None}
    edited = {path for module, path in modules if not _is_as_loaded(module, files.get(path))}
    return files, edited | (_opened.edited() & files.keys())


def _loaded(named: frozenset[str]) -> Iterator[tuple[ModuleType, str]]:
    """The loaded modules that are the user's, and their files."""
    main = sys.modules["__main__"]  # multiprocessing gives it a second name
    packages = {name.partition(".")[0] for name in named} - {"torch", "mfac_compress"}
    for name, module in list(sys.modules.items()):
        if module is main and "__main__" not in named:
            continue  # the command line, or a script of the user's that starts runs
        is_named = name.partition(".")[0] in packages
        if not is_named and not _counts(_written_path(module) or ""):
            continue  # thousands of modules, none of whose files need be looked at
        path = _file_of(module)
        if path is not None and (_counts(path) or (is_named and not _is_ours(path))):
            yield module, path


def _is_as_loaded(module: ModuleType, now: str | None) -> bool:
    """Whether a module's file has the digest that it had when it was first looked at."""
    if module.__name__.startswith(USER_FILE):
        return True  # loaded anew where its file has changed
    return _seen.setdefault(module, now) == now


def _check_as_loaded(module: ModuleType, path: str, now: str | None) -> None:
    """Check that a module is what its file says, as far as it has been seen before.

    Args:
        module: As it is loaded.
        path: Its file.
        now: Digest of the file.
    Raises:
        InputError: If the file was edited since, and so the edit would not take part in the run.
    """
    if not _is_as_loaded(module, now):
        raise InputError(
            f"The user's code must be loaded as it is on disk. {path} was edited after this Python "
            "process imported it. Start Python anew (or restart the notebook's kernel)."
        )


def unchanged(files: Mapping[str, str]) -> bool:
    """Whether files have the content that was noted."""
    return all(_digest(path) == digest for path, digest in files.items())


def _written_path(module: ModuleType) -> str | None:
    """The absolute path that a module says it was loaded from."""
    path = getattr(module, "__file__", None)
    return os.path.abspath(path) if isinstance(path, str) else None


def _file_of(module: ModuleType) -> str | None:
    """The file, or the archive, that a module was loaded from."""
    path = _written_path(module)
    if path is None:
        return None
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)  # a module in a zip archive
    return path if os.path.isfile(path) else None


def _counts(path: str) -> bool:
    """Whether a file is the user's: no part of an installed package, of Python, or of ours."""
    return not path.startswith((*_NOT_FILES, *_installed())) and not _is_ours(path)


def _is_ours(path: str | None) -> bool:
    return path is not None and path.startswith(_OWN_FOLDERS)


@cache
def _installed() -> tuple[str, ...]:
    """Folders of Python and of what is installed for it, with a separator at the end."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    folders = {sysconfig.get_paths()[name] for name in names}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders |= {os.path.join(sys.base_prefix, "lib"), os.path.join(sys.prefix, "lib")}
    folders |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return tuple(sorted({f"{form}{os.sep}" for f in folders for form in (f, os.path.realpath(f))}))


def _digest(path: str) -> str | None:
    """SHA-256 of a file; None where it is none, or cannot be read."""
    try:
        return file_digest(path) if os.path.isfile(path) else None
    except OSError:
        return None
