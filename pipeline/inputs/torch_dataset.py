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
from mfac_compress.pipeline.inputs.splits import (
    Extremes,
    as_target,
    check_unchanged,
    sample_digests,
)
from mfac_compress.pipeline.quoting import dtype_name, shown
from mfac_compress.pipeline.recipe.schema import FactoryData

_KEY = "data.factory"
_SPLITS = ("calibration", "recovery", "validation")
_SCAN_BATCH = 256
_READ_TWICE = 8
_MOST_AXES = 32
_REAL = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


class DatasetSamples:
    """Samples of one map-style dataset of ``(x, y)`` pairs, already as the model takes them.

    The dataset is read once from end to end here, for the hashes that find overlaps. One that
    changes its samples at random hides overlaps and is never cached. Validation must not: there
    every reading is compared with the first, because the files that are compared must be given
    the same samples.

    Args:
        dataset: With ``__len__`` and ``__getitem__``.
        name: Of the split.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        self._pairs: list[bytes] = []
        self.digests: list[bytes] = []
        inputs, targets = Extremes(), Extremes()
        total = hashlib.sha256()
        count = self._length()
        for start in range(0, count, _SCAN_BATCH):
            x, y = self._read(range(start, min(start + _SCAN_BATCH, count)))
            self._check_finite(x, start, "inputs")
            self._check_finite(y, start, "targets")
            self.digests += sample_digests(x.numpy())
            self._pairs += _pair_digests(x, y)
            inputs.add(x.numpy(), start)
            targets.add(y.numpy(), start)
            total.update(f"{x.dtype} {tuple(x.shape[1:])} {y.dtype} {tuple(y.shape[1:])}".encode())
            total.update(y.numpy())
        total.update(b"".join(self.digests))
        self.fingerprint = total.hexdigest()
        self.extremes = [*inputs.positions, *targets.positions]
        first = range(min(_READ_TWICE, count))
        self.stable = _pair_digests(*self.fetch(first)) == self._pairs[: len(first)]

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, y = self._read(positions)
        if self._name == "validation":
            check_unchanged(_pair_digests(x, y), self._pairs, positions, self.describe)
        return x, y

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def describe(self, position: int) -> str:
        return f"sample {position} of {_KEY}'s {self._name!r}"

    def _read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        samples = self._get(list(positions))
        if len(samples) != len(positions):
            raise InputError(
                f"{_KEY} must give as many samples as it is asked for. {self._name!r} gave "
                f"{len(samples)} for samples {positions[0]}..{positions[-1]}."
            )
        for position, sample in zip(positions, samples, strict=True):
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise InputError(
                    f"{_KEY} must give (x, y) pairs. Sample {position} of {self._name!r} is a "
                    f"{type(sample).__name__}."
                )
        try:
            with user_code():
                x, y = default_collate([tuple(sample) for sample in samples])
        except Exception as error:
            raise InputError(
                f"{_KEY} must give tensors, arrays or numbers, all of one shape. Samples "
                f"{positions[0]}..{positions[-1]} of {self._name!r} cannot be stacked: "
                f"{describe(error)}."
            ) from error
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise InputError(
                f"{_KEY} must give one tensor as x and one as y. The {self._name} dataset gives a "
                f"{type(x).__name__} and a {type(y).__name__}."
            )
        x, y = self._plain(x, "x"), self._plain(y, "y")
        return (x.float() if x.is_floating_point() else x), as_target(y)

    def _plain(self, values: Tensor, what: str) -> Tensor:
        """Values on the CPU, without a history of gradients."""
        dense = values.layout == torch.strided and not (values.is_nested or values.is_meta)
        small = values.numel() > 0 and values.ndim <= _MOST_AXES
        if not dense or values.dtype not in _REAL or not small:
            kind = dtype_name(values.dtype) if dense else str(values.layout)
            raise InputError(
                f"{_KEY} must give dense tensors of real numbers, of {_MOST_AXES} axes at most and "
                f"none of them empty. {self._name!r} gives {what} of {kind} {list(values.shape)}."
            )
        return values.detach().cpu().contiguous()

    def _length(self) -> int:
        try:
            with user_code():
                usable = hasattr(self._dataset, "__getitem__") and hasattr(self._dataset, "__len__")
                count = len(self._dataset) if usable else 0
        except Exception as error:
            raise InputError(
                f"{_KEY} must give datasets that know their length. That of {self._name!r} raised "
                f"{describe(error)}."
            ) from error
        if not usable:
            raise InputError(
                f"{_KEY} must give map-style datasets, with __len__ and __getitem__. "
                f"{self._name!r} is a {type(self._dataset).__name__}."
            )
        if not count:
            raise InputError(f"{_KEY} must give datasets with samples. {self._name!r} is empty.")
        return count

    def _get(self, positions: list[int]) -> list[Any]:
        try:
            with user_code(reads_data=True):
                batched = getattr(self._dataset, "__getitems__", None)
                if batched is not None:
                    return list(batched(positions))
                return [self._dataset[position] for position in positions]
        except Exception as error:
            raise InputError(
                f"{_KEY} must give datasets that can be read. {self._name!r} raised "
                f"{describe(error)} for samples {positions[0]}..{positions[-1]}."
            ) from error

    def _check_finite(self, values: Tensor, start: int, what: str) -> None:
        finite = values.isfinite().reshape(len(values), -1).all(1)
        broken = torch.nonzero(~finite).flatten() + start
        if len(broken):
            raise InputError(
                f"{_KEY} must give finite {what}. {self._name!r} has NaN or Inf in samples "
                f"{broken[:5].tolist()}."
            )


def _pair_digests(x: Tensor, y: Tensor) -> list[bytes]:
    return [
        hashlib.sha256(b"".join(pair)).digest()
        for pair in zip(sample_digests(x.numpy()), sample_digests(y.numpy()), strict=True)
    ]


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
                if isinstance(datasets, Mapping):
                    datasets = dict(datasets)
        except Exception as error:
            raise InputError(
                f"{_KEY} must make the datasets from data.kwargs. {recipe.factory!r} with "
                f"{recipe.kwargs} raised {describe(error)}."
            ) from error
        if not isinstance(datasets, dict) or not set(datasets) <= set(_SPLITS):
            got = shown(list(datasets)) if isinstance(datasets, dict) else type(datasets).__name__
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
