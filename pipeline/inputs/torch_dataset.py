"""Data from the user's own torch datasets."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mfac_compress.mfac.batch import Batch, Tree, named_tensors, stack
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable, user_code
from mfac_compress.pipeline.inputs.dataset import Augmentation, form_of, unchanged
from mfac_compress.pipeline.inputs.items import ItemError, as_batch, as_plain
from mfac_compress.pipeline.quoting import shown
from mfac_compress.pipeline.recipe.schema import FactoryData

_KEY = "data.factory"
_SPLITS = ("calibration", "recovery", "validation")

Collate = Callable[[list[Any]], Any]


class ItemDataset:
    """Items of one of the user's map-style datasets, and batches of them.

    A dataset that changes its samples at random hides overlaps and is never cached.

    Args:
        dataset: With ``__len__`` and ``__getitem__`` (or ``__getitems__``).
        name: Of the split.
        target: Key of the targets in an item that is a dict.
        labelled: Whether such an item must have them.
        collate: The user's; None to stack items of one form.
        preparation: Name of that function.
    Raises:
        InputError: If it is no such dataset, or empty.
    """

    key = _KEY
    kind: Literal["code"] = "code"
    lengths = None

    def __init__(
        self,
        dataset: Any,
        name: str,
        target: str,
        labelled: bool,
        collate: Collate | None,
        preparation: str = "",
    ) -> None:
        self._dataset, self._name, self._collate = dataset, name, collate
        self._target, self._labelled = target, labelled
        self._length = self._count()
        # Padding depends on what else is in a batch.
        self.alone = collate is not None
        self.preparation = preparation

    def __len__(self) -> int:
        return self._length

    def read(self, positions: Sequence[int]) -> list[tuple[int, Any]]:
        """Items with their positions, which errors name."""
        items = self._get(list(positions))
        if len(items) != len(positions):
            raise InputError(
                f"{_KEY} must give as many samples as it is asked for. {self._name!r} gave "
                f"{len(items)} for samples {_span(positions)}."
            )
        return list(zip(positions, items, strict=True))

    def collate(self, samples: Sequence[tuple[int, Any]]) -> Batch:
        if self._collate is not None:
            return self._collated(self._collate, samples)
        batches: list[Batch] = []
        try:
            with user_code(reads_data=True):  # dicts may be of the user's own classes
                for _, item in samples:
                    batches.append(as_batch(item, self._target, None if self._labelled else 0))
        except Exception as error:
            raise InputError(
                f"{_KEY} must give items (inputs, targets), or dicts. Sample "
                f"{samples[len(batches)][0]} of {self._name!r} {_said(error)}."
            ) from error
        try:
            return as_plain(stack(batches))
        except ItemError as error:
            raise InputError(f"{_KEY}: a sample of {self._name!r} {error}.") from error
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{_KEY} must give items of one form, or data.collate must pad them. "
                f"{self._name!r} {_difference(samples, batches) or error}."
            ) from error

    def prepare(self, inputs: Tree, augment: Augmentation = unchanged) -> Tree:
        return augment(inputs)

    def describe(self, position: int) -> str:
        return f"sample {position} of {_KEY}'s {self._name!r}"

    def _collated(self, collate: Collate, samples: Sequence[tuple[int, Any]]) -> Batch:
        positions, items = zip(*samples, strict=True)
        what = f"samples {_span(positions)} of {self._name!r}"
        must = "data.collate must return (inputs, targets) or one dict, of tensors [n, ...]"
        try:
            with user_code(reads_data=True):
                # Copies: collate functions take the labels out of the items that they get.
                result = collate([copy.copy(item) for item in items])
        except Exception as error:
            raise InputError(f"{must}. For {what} it raised {describe(error)}.") from error
        try:
            with user_code(reads_data=True):
                default = None if self._labelled else torch.zeros(len(items), dtype=torch.long)
                batch = as_plain(as_batch(result, self._target, default))
        except Exception as error:
            raise InputError(f"{must}. For {what} it returned what {_said(error)}.") from error
        if any(tensor.shape[:1] != (len(items),) for _, tensor in named_tensors(batch)):
            raise InputError(
                f"{must}, of n = {len(items)} for {what}. Got {form_of(batch, axis=0)}."
            )
        return batch

    def _count(self) -> int:
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
                f"{describe(error)} for samples {_span(positions)}."
            ) from error


def open_factory(
    section: FactoryData, folder: Path, labelled: Mapping[str, bool], *, target: str
) -> dict[str, ItemDataset]:
    """Call the user's factory once and take its datasets.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        labelled: Splits to take, and whether each needs targets.
        target: Key of the targets in an item that is a dict.
    Raises:
        InputError: If the factory fails, or gave no such split, or none that can be used.
    """
    collate = None
    if section.collate is not None:
        collate = resolve_callable(section.collate, key="data.collate", folder=folder)
        check_takes(collate, ("items",), key="data.collate", name=section.collate)
    datasets = _made(section, folder)
    for name in labelled:
        if name not in datasets:
            raise InputError(
                f"{_KEY} must return a {name!r} dataset"
                f"{', because the recipe trains' if name == 'recovery' else ''}. It returned "
                f"{', '.join(datasets) or 'none'}."
            )
    return {
        name: ItemDataset(datasets[name], name, target, needs, collate, section.collate or "")
        for name, needs in labelled.items()
    }


def _made(section: FactoryData, folder: Path) -> dict[str, Any]:
    factory = resolve_callable(section.factory, key=_KEY, folder=folder)
    try:
        with user_code(reads_data=True):
            datasets = factory(**section.kwargs)
            if isinstance(datasets, Mapping):
                datasets = dict(datasets)
    except Exception as error:
        raise InputError(
            f"{_KEY} must make the datasets from data.kwargs. {section.factory!r} with "
            f"{section.kwargs} raised {describe(error)}."
        ) from error
    if not isinstance(datasets, dict) or not set(datasets) <= set(_SPLITS):
        got = shown(list(datasets)) if isinstance(datasets, dict) else type(datasets).__name__
        raise InputError(
            f"{_KEY} must return a dict with {', '.join(_SPLITS)}. {section.factory!r} returned "
            f"{got}."
        )
    return datasets


def _difference(samples: Sequence[tuple[int, Any]], batches: Sequence[Batch]) -> str | None:
    """The first two samples that are not of one form; None where all are."""
    forms = [form_of(batch, axis=0) for batch in batches]
    for (position, _), form in zip(samples, forms, strict=True):
        if form != forms[0]:
            return f"has {forms[0]} in sample {samples[0][0]}, and {form} in sample {position}"
    return None


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ItemError) else f"raised {describe(error)}"


def _span(positions: Sequence[int]) -> str:
    return f"{positions[0]}..{positions[-1]}"
