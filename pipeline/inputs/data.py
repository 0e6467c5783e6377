"""From the recipe's ``data`` section to disjoint splits."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.arrays import ArraySource, DigitsSource
from mfac_compress.pipeline.inputs.image_folder import FolderSource
from mfac_compress.pipeline.inputs.splits import Samples, Split
from mfac_compress.pipeline.inputs.torch_dataset import DatasetSource
from mfac_compress.pipeline.quoting import type_and_shape
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
        overlap: How many samples two splits share, for each pair that shares some; at most
            ``data.max_overlap``.
    """

    calibration: Split
    recovery: Split | None
    validation: Split
    overlap: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Split]:
        return iter([s for s in (self.calibration, self.recovery, self.validation) if s])

    @property
    def fingerprint(self) -> str:
        """Changes where any split's does. A stage that uses one split takes that one's."""
        text = " ".join(f"{split.name}:{split.fingerprint}" for split in self)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def repeats(self) -> dict[str, int]:
        """How many samples of each split have the input of one before them, where any have.

        Such data has fewer independent samples than its intervals count, unless its inputs take
        few values by nature.
        """
        counts = {split.name: len(split) - len(set(split.samples.digests)) for split in self}
        return {name: count for name, count in counts.items() if count}

    @property
    def unstable(self) -> list[str]:
        """Splits whose samples are not the same at every reading: overlaps cannot be seen."""
        return [split.name for split in self if not split.samples.stable]


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
    overlap = {
        (first.name, second.name): shared
        for first, second in combinations(splits, 2)
        if (shared := _shared_samples(first, second, section.max_overlap))
    }
    return replace(splits, overlap=overlap)


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
    return ", ".join(f"{name} {type_and_shape(part[0])}" for name, part in parts.items())


def _shared_samples(first: Split, second: Split, allowed: int) -> int:
    """Count the samples of either split that the other has too; the larger of the two counts.

    Raises:
        InputError: If they are more than allowed.
    """
    places = {digest: at for at, digest in reversed(list(enumerate(first.samples.digests)))}
    pairs = [(places[d], at) for at, d in enumerate(second.samples.digests) if d in places]
    common = {second.samples.digests[at] for _, at in pairs}
    shared = max(len(pairs), sum(digest in common for digest in first.samples.digests))
    if shared > allowed:
        named = "; ".join(
            f"{first.describe(a)} = {second.describe(b)}" for a, b in sorted(pairs)[:_SHOWN]
        )
        raise InputError(
            f"data splits must be disjoint: {first.name} and {second.name} share {shared} samples "
            f"({allowed} allowed), the first {named}. A model must not be judged by what it was "
            "fitted to: give the splits separate rows or files, or raise data.max_overlap where "
            "these are natural duplicates."
        )
    return shared
