"""Data from the user's own torch datasets."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.callables import describe, resolve_callable, user_code
from mfac_compress.pipeline.inputs.splits import as_target
from mfac_compress.pipeline.recipe.schema import FactoryData

_KEY = "data.factory"
_SPLITS = ("calibration", "recovery", "validation")
_SCAN_BATCH = 256


class DatasetSamples:
    """Samples of one map-style dataset of ``(x, y)`` pairs, already as the model takes them.

    The dataset is read once from end to end here, for the hashes that find overlaps. A dataset
    that changes its samples at random hides overlaps and is never cached.

    Args:
        dataset: With ``__len__`` and ``__getitem__``.
        name: Of the split.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        count = self._length()
        self.digests: list[bytes] = []
        total = hashlib.sha256()
        for start in range(0, count, _SCAN_BATCH):
            x, y = self.fetch(range(start, min(start + _SCAN_BATCH, count)))
            self._check_finite(x, start)
            self.digests += [hashlib.sha256(sample.contiguous().numpy()).digest() for sample in x]
            total.update(f"{x.dtype} {tuple(x.shape[1:])} {y.dtype} {tuple(y.shape[1:])}".encode())
            total.update(y.contiguous().numpy())
        total.update(b"".join(self.digests))
        self.fingerprint = total.hexdigest()

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        samples = self._get(list(positions))
        for position, sample in zip(positions, samples, strict=True):
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise InputError(
                    f"{_KEY} must give (x, y) pairs. Sample {position} of {self._name!r} is a "
                    f"{type(sample).__name__}."
                )
        try:
            x, y = default_collate([tuple(sample) for sample in samples])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{_KEY} must give tensors, arrays or numbers, all of one shape. Samples "
                f"{positions[0]}..{positions[-1]} of {self._name!r} cannot be stacked: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise InputError(
                f"{_KEY} must give one tensor as x and one as y. The {self._name} dataset gives a "
                f"{type(x).__name__} and a {type(y).__name__}."
            )
        return (x.float() if x.is_floating_point() else x), as_target(y)

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def describe(self, position: int) -> str:
        return f"sample {position} of {_KEY}'s {self._name!r}"

    def _length(self) -> int:
        if not hasattr(self._dataset, "__getitem__") or not hasattr(self._dataset, "__len__"):
            raise InputError(
                f"{_KEY} must give map-style datasets, with __len__ and __getitem__. "
                f"{self._name!r} is a {type(self._dataset).__name__}."
            )
        count = len(self._dataset)
        if not count:
            raise InputError(f"{_KEY} must give datasets with samples. {self._name!r} is empty.")
        return count

    def _get(self, positions: list[int]) -> list[Any]:
        batched = getattr(self._dataset, "__getitems__", None)
        try:
            with user_code(reads_data=True):
                if batched is not None:
                    return batched(positions)
                return [self._dataset[position] for position in positions]
        except Exception as error:
            raise InputError(
                f"{_KEY} must give datasets that can be read. {self._name!r} raised "
                f"{describe(error)} for samples {positions[0]}..{positions[-1]}."
            ) from error

    def _check_finite(self, x: Tensor, start: int) -> None:
        broken = torch.nonzero(~x.isfinite().reshape(len(x), -1).all(1)).flatten() + start
        if len(broken):
            raise InputError(
                f"{_KEY} must give finite inputs. {self._name!r} has NaN or Inf in samples "
                f"{broken[:5].tolist()}."
            )


class DatasetSource:
    """Calls the user's factory once and takes its datasets.

    Args:
        recipe: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
    """

    def __init__(self, recipe: FactoryData, folder: Path) -> None:
        factory = resolve_callable(recipe.factory, key=_KEY, folder=folder)
        try:
            with user_code(reads_data=True):
                datasets = factory(**recipe.kwargs)
        except Exception as error:
            raise InputError(
                f"{_KEY} must make the datasets from data.kwargs. {recipe.factory!r} with "
                f"{recipe.kwargs} raised {describe(error)}."
            ) from error
        if not isinstance(datasets, Mapping) or not set(datasets) <= set(_SPLITS):
            got = list(datasets) if isinstance(datasets, Mapping) else type(datasets).__name__
            raise InputError(
                f"{_KEY} must return a dict with {', '.join(_SPLITS)}. {recipe.factory!r} returned "
                f"{got}."
            )
        self._datasets = datasets

    def load(self, name: str) -> DatasetSamples:
        """Take the samples of one split.

        Args:
            name: Of the split.
        Returns:
            The samples.
        Raises:
            InputError: If the factory gave no such split, or its samples cannot be used.
        """
        if name not in self._datasets:
            raise InputError(
                f"{_KEY} must return a {name!r} dataset"
                f"{', because recover.epochs > 0' if name == 'recovery' else ''}. It returned "
                f"{', '.join(self._datasets) or 'none'}."
            )
        return DatasetSamples(self._datasets[name], name)
