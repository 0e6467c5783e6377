"""What the commands of the command line have in common: exit codes, and what they print."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import click

from mfac_compress.pipeline.errors import CompressError, RankError, stage_named

PASS, GATE_FAILED = 0, 1


def with_exit_code(command: Callable[..., int | None]) -> Callable[..., int]:
    """Turn errors into one message and the exit codes of the contract."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with stage_named("command line"):
                return command(*args, **kwargs) or PASS
        except CompressError as error:
            if not (isinstance(error, RankError) and error.reported):
                click.echo(f"error: {error}", err=True)
            return error.exit_code

    return run


def exits(command: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """End the program with a command's exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> NoReturn:
        sys.exit(with_exit_code(command)(*args, **kwargs))

    return run


@contextmanager
def announced(what: str, *, quiet: bool) -> Iterator[None]:
    """Say on a terminal what takes seconds before anything else can be shown."""
    shown = not quiet and sys.stderr.isatty()
    if shown:
        click.echo(what, err=True, nl=False)
    try:
        yield
    finally:
        if shown:
            click.echo(f"\r{' ' * len(what)}\r", err=True, nl=False)


def silence_pytorch() -> None:
    """Keep PyTorch's log, with whole tracebacks, from above the message of a refusal."""
    if "TORCH_LOGS" not in os.environ:
        loggers = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
        for handler in (each for name in loggers for each in logging.getLogger(name).handlers):
            handler.setLevel(logging.CRITICAL + 1)


def print_text(text: str) -> None:
    """Print to stdout; who closed it has read enough, which is no error of the run's."""
    try:
        click.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
