"""From the recipe's ``data`` section to disjoint splits."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.arrays import ArraySource, DigitsSource
from mfac_compress.pipeline.inputs.image_folder import FolderSource
from mfac_compress.pipeline.inputs.own_dataset import DatasetSource
from mfac_compress.pipeline.inputs.splits import Samples, Split
from mfac_compress.pipeline.recipe.schema import (
    ArraysData,
    Augment,
    Data,
    DigitsData,
    ImageFolderData,
)

_SHOWN = 3


@dataclass(frozen=True)
class DataSplits:
    """The data of a run.

    Attributes:
        calibration: For the gradients.
        recovery: For fine-tuning; None where there is none.
        validation: For the gates, and nothing else.
    """

    calibration: Split
    recovery: Split | None
    validation: Split

    def __iter__(self) -> Iterator[Split]:
        return iter([s for s in (self.calibration, self.recovery, self.validation) if s])

    @property
    def fingerprint(self) -> str:
        """Changes where any split's does. A stage that uses one split takes that one's."""
        text = " ".join(f"{split.name}:{split.fingerprint}" for split in self)
        return hashlib.sha256(text.encode()).hexdigest()


def load_data(
    section: Data, *, folder: Path, needs_recovery: bool, labelled: bool = True
) -> DataSplits:
    """Open the data of a recipe and check that its splits share no samples.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        needs_recovery: Whether the run fine-tunes. Otherwise that split is not opened.
        labelled: Whether calibration needs targets. Otherwise those of arrays may be missing.
    Returns:
        The splits.
    Raises:
        InputError: If data is missing, broken, does not fit the recipe, or is in two splits.
    """
    names = ["calibration", *(["recovery"] if needs_recovery else []), "validation"]
    augment = getattr(section, "augment", Augment())
    source = _open(section, folder)
    loaded = {}
    for name in names:
        samples = _load(source, section, name, labelled or name != "calibration")
        loaded[name] = Split(name, samples, augment if name == "recovery" else Augment())
    splits = DataSplits(loaded["calibration"], loaded.get("recovery"), loaded["validation"])
    _check_same_form(splits, labelled)
    for first, second in combinations(splits, 2):
        _check_disjoint(first, second, section.max_overlap)
    return splits


def _open(section: Data, folder: Path) -> Any:
    if isinstance(section, DigitsData):
        return DigitsSource()
    if isinstance(section, ArraysData):
        return ArraySource(section, folder)
    if isinstance(section, ImageFolderData):
        return FolderSource(section, folder)
    return DatasetSource(section, folder)


def _load(source: Any, section: Data, name: str, labelled: bool) -> Samples:
    if isinstance(source, DatasetSource):
        return source.load(name)
    key = f"data.splits.{name}"
    place = getattr(section.splits, name)
    if place is None:
        raise InputError(f"{key} must be given where recover.epochs > 0. Got none.")
    if isinstance(section, ArraysData):
        return source.load(place, key, labelled=labelled)
    return source.load(place, key)


def _check_same_form(splits: DataSplits, labelled: bool) -> None:
    # Samples of another type would also never hash alike, and hide an overlap.
    first = splits.validation
    for split in splits:
        with_targets = labelled or split is not splits.calibration
        expected, found = (_form(one, with_targets) for one in (first, split))
        if found != expected:
            raise InputError(
                f"data must have samples of one shape and type in all splits. {first.name} has "
                f"{expected}, {split.name} has {found}. Bring the files into one form."
            )


def _form(split: Split, with_targets: bool) -> str:
    x, y = split.samples.fetch([0])
    parts = {"x": x, "y": y} if with_targets else {"x": x}
    return ", ".join(
        f"{name} {str(part.dtype).removeprefix('torch.')} {list(part.shape[1:])}"
        for name, part in parts.items()
    )


def _check_disjoint(first: Split, second: Split, allowed: int) -> None:
    places = {digest: at for at, digest in reversed(list(enumerate(first.samples.digests)))}
    shared = {
        digest: at
        for at, digest in reversed(list(enumerate(second.samples.digests)))
        if digest in places
    }
    if len(shared) <= allowed:
        return
    pairs = sorted((places[digest], at) for digest, at in shared.items())[:_SHOWN]
    shown = "; ".join(f"{first.describe(a)} = {second.describe(b)}" for a, b in pairs)
    raise InputError(
        f"data splits must be disjoint: {first.name} and {second.name} share {len(shared)} samples"
        f" ({allowed} allowed), the first {shown}. A model must not be judged by what it was fitted"
        " to: give the splits separate rows or files, or raise data.max_overlap where these are "
        "natural duplicates."
    )
