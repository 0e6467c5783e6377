"""What options of the command line hold beyond text and numbers."""

from collections.abc import Callable
from typing import Any

import click

from mfac_compress.pipeline.errors import InputError


class Numbers(click.ParamType):
    """Whole numbers from 1, with commas."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"must be whole numbers from 1, like 1,16. Got {value!r}.", param, ctx)
        return numbers


class Shape(click.ParamType):
    """An input's name and its shape."""

    name = "INPUT=N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, equals, numbers = value.rpartition("=")
        if not (name and equals):
            self.fail(f"must be like ids=1,128. Got {value!r}.", param, ctx)
        return name, Numbers().convert(numbers, param, ctx)


def by_input(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, tuple[int, ...]]:
    """Put shapes under the names of their inputs.

    Raises:
        InputError: If one input is given twice.
    """
    names = [name for name, _ in shapes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--shape must be given once for an input. {', '.join(twice)} has more.")
    return dict(shapes)


def set_option(explanation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--set KEY.PATH=VALUE``, as often as it is given: the argument ``overrides``."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help=explanation
    )
