"""Random changes of training samples beyond crop and flip: ``data.augment.transforms``.

Either a function of the user's own that returns a transform, of samples of any shape, or names of
transforms of torchvision.transforms.v2 with their arguments, which are for images.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Tree
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable, user_code
from mfac_compress.pipeline.inputs.forward import random_state_kept
from mfac_compress.pipeline.quoting import shortened, type_and_shape
from mfac_compress.pipeline.recipe.keys import nearest
from mfac_compress.pipeline.recipe.schema import Augment

_KEY = "data.augment.transforms"
_VISION = "torchvision.transforms.v2"


@dataclass(frozen=True, eq=False)
class Transforms:
    """A random transform of samples.

    Args:
        name: What it is, for messages.
        transform: Of one raw sample, such as an image ``[channels, height, width]``, whose shape
            and type stay.
        images_only: Whether it takes nothing but images.
    """

    name: str
    transform: Callable[[Tensor], Any]
    images_only: bool = False

    def __call__(self, x: Tree, generator: torch.Generator) -> Tensor:
        """Change each sample of a batch on its own.

        The transform draws from the random numbers of PyTorch, NumPy or Python, all of which are
        seeded for the batch and put back afterwards.

        Args:
            x: Raw samples. Shape ``[n, ...]``.
            generator: Draws the seed.
        Returns:
            Samples of the same shape and type.
        Raises:
            InputError: If ``x`` does not fit, or the transform fails or returns something else.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{_KEY} needs one tensor. Got {type_and_shape(x)}. Remove it.")
        if self.images_only and x.ndim != 4:
            raise InputError(
                f"{_KEY} needs batches of images, [n, channels, height, width]. "
                f"Got {type_and_shape(x)}. Set data.layout, or name a function of your own."
            )
        seed = int(torch.randint(2**32, (), generator=generator))
        with _seeded(seed):
            return torch.stack([self._changed(sample) for sample in x])

    def _changed(self, sample: Tensor) -> Tensor:
        try:
            with user_code():
                found = self.transform(sample.clone())
        except Exception as error:
            raise InputError(
                f"{_KEY} must take a sample, {type_and_shape(sample)}. {self.name} raised "
                f"{describe(error)}."
            ) from error
        if (
            not isinstance(found, Tensor)
            or (found.shape, found.dtype) != (sample.shape, sample.dtype)
            or not (found.isfinite().all() if found.is_floating_point() else True)
        ):
            got = type_and_shape(found) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"{_KEY} must return a sample like the one that it was given, finite numbers of "
                f"{type_and_shape(sample)}: data.mean and data.std come after it. {self.name} "
                f"returned {got}."
            )
        return found.detach().as_subclass(Tensor)


def load_transforms(augment: Augment, *, folder: Path) -> Transforms | None:
    """Make what a recipe's ``data.augment.transforms`` says; None where it says nothing.

    Args:
        augment: The recipe's ``data.augment``.
        folder: Where relative file paths start: the recipe's folder.
    Raises:
        InputError: If it cannot be made.
    """
    given = augment.transforms
    if given is None:
        return None
    if isinstance(given, str):
        return Transforms(f"The transform of {given}", _of_factory(given, folder))
    chain = [_of_torchvision(*_named(one)) for one in given]
    names = ", ".join(_named(one)[0] for one in given)
    return Transforms(f"{_VISION}: {names}", _Chain(chain), images_only=True)


@dataclass(frozen=True)
class _Chain:
    """One transform after the other."""

    transforms: Sequence[Callable[[Any], Any]]

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def _of_factory(name: str, folder: Path) -> Callable[[Tensor], Any]:
    factory = resolve_callable(name, key=_KEY, folder=folder)
    check_takes(factory, (), key=_KEY, name=name)
    try:
        with user_code():
            made = factory()
    except Exception as error:
        raise InputError(
            f"{_KEY} must be a function that returns a transform. {name!r} raised "
            f"{describe(error)}."
        ) from error
    if not callable(made):
        raise InputError(
            f"{_KEY} must be a function that returns a transform, which takes a sample and returns "
            f"it changed. {name!r} returned {type(made).__name__}."
        )
    return made


def _named(one: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an entry of the list."""
    return (one, {}) if isinstance(one, str) else next(iter(one.items()))


def _of_torchvision(name: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    found = _public_transforms()
    if name not in found:
        near = nearest(name, found)
        advice = f" Did you mean {near}?" if near else ""
        raise InputError(
            f"{_KEY} must name transforms of {_VISION}. Got {shortened(name)!r}.{advice} "
            "For one of your own, name a function that returns it: my_project.augment:build."
        )
    try:
        return found[name](**arguments)
    except Exception as error:
        raise InputError(
            f"{_KEY}.{name} must have the arguments of {_VISION}.{name}. Got "
            f"{shortened(repr(arguments), 60)}, and it raised {describe(error)}."
        ) from error


def _public_transforms() -> dict[str, Callable[..., Any]]:
    """The classes of torchvision that are transforms; functions and base classes are none."""
    try:
        from torchvision.transforms import v2
    except Exception as error:  # RuntimeError, too, where it was built for another PyTorch
        raise InputError(
            f"{_KEY} needs the package torchvision, which cannot be imported ({describe(error)}). "
            "Install the version that belongs to your PyTorch: pip install "
            f"'mfac-compress[vision]'. This PyTorch is {torch.__version__}."
        ) from error
    return {
        name: each
        for name, each in vars(v2).items()
        if inspect.isclass(each) and issubclass(each, v2.Transform) and each is not v2.Transform
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of all three kinds from a seed, on the CPU, and those of before afterwards."""
    with random_state_kept(torch.device("cpu")):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # a GPU's generator is left alone
        yield
