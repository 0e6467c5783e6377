"""The ways a run can end without a verdict, each with its exit code."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mfac_compress.pipeline.quoting import first_line


class CompressError(Exception):
    """A run that ends without a verdict. The message says what to do about it."""

    exit_code = 3


class InputError(CompressError):
    """The recipe, the model or the data is wrong: the user can fix it."""

    exit_code = 2


class StageError(CompressError):
    """A stage failed for another reason.

    Args:
        stage: Name of the stage, for example ``"calibrate"``.
        message: What went wrong and what to do.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.stage = stage


class RankError(CompressError):
    """Another process of the run has failed.

    Args:
        rank: Which one.
        message: Its error's.
        exit_code: Its error's.
        reported: Whether yet another process says so.
    """

    def __init__(self, rank: int, message: str, exit_code: int, *, reported: bool) -> None:
        super().__init__(f"process {rank}: {message}")
        self.exit_code = exit_code
        self.reported = reported


def text_of(error: BaseException) -> str:
    """What an exception says; its own ``__str__`` may fail, and what it returns may be no text."""
    try:
        # KeyError quotes its one argument, a sentence as well.
        is_quoted = isinstance(error, KeyError) and len(error.args) == 1
        return str(error.args[0] if is_quoted else error)
    except Exception as failure:
        return f"(its text cannot be shown: {type(failure).__name__})"


class EscapeError(RuntimeError):
    """The user's code raised what ends programs, such as SystemExit, where it was to return.

    Args:
        escape: What it raised.
    """

    def __init__(self, escape: BaseException) -> None:
        super().__init__(f"{type(escape).__name__}: {text_of(escape)}")
        self.escape = escape


def in_brief(error: BaseException) -> str:
    """Say an exception of a library's in a few words: its type, and the first line of its text.

    >>> in_brief(KeyError("No such key.\\nDid you mean ..."))
    'KeyError: No such key'
    """
    return first_line(f"{type(error).__name__}: {text_of(error)}")


def describe(error: BaseException) -> str:
    """Say an exception of the user's code in one line: type, message, file and line.

    Args:
        error: The exception, as caught.
    Returns:
        For example ``TypeError: 'x' is not a number (net.py, line 12)``.
    """
    if isinstance(error, EscapeError):
        error = error.escape
    text = f"{type(error).__name__}: {text_of(error)}"
    if isinstance(error, SyntaxError):
        return f"{text} ({Path(error.filename or '?').name}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_not_the_users())
    ]
    # None are left where a call does not fit: it fails in the line that makes it, which is ours.
    if not frames:
        return text
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def _not_the_users() -> tuple[str, ...]:
    """Where lines stand that do not help who looks for an error in their own."""
    torch = find_spec("torch")  # not imported here: that takes seconds
    folders = [] if torch is None or torch.origin is None else [str(Path(torch.origin).parent)]
    return str(Path(__file__).parent), *folders, "<frozen"


@contextmanager
def stage_named(stage: str, *, resumable: bool = False) -> Iterator[None]:
    """Name the stage in whatever goes wrong in it, also where the user interrupts it.

    Args:
        stage: Its name.
        resumable: Whether stages before it have finished, which the next run finds.

    Raises:
        InputError: For what ends programs (SystemExit and the like): only the user's code raises
            it, and it must not decide the exit code.
        StageError: For every other exception but :class:`CompressError`.
    """
    try:
        yield
    except CompressError:
        raise
    except KeyboardInterrupt:
        kept = " Start again: finished stages are kept." if resumable else ""
        raise StageError(stage, f"interrupted.{kept}") from None
    except Exception as error:
        raise StageError(stage, f"{type(error).__name__}: {text_of(error)}") from error
    except BaseException as error:
        raise InputError(
            f"stage {stage}: the model, loss, metric and data set must return, not end the "
            f"program. One raised {describe(error)}. Raise an ordinary exception instead."
        ) from error
