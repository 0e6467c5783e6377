"""From the recipe's ``data`` section to disjoint splits."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.arrays import open_arrays, open_digits
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.dataset import Dataset, form_of
from mfac_compress.pipeline.inputs.splits import Split, open_split
from mfac_compress.pipeline.inputs.text import open_texts
from mfac_compress.pipeline.inputs.torch_dataset import open_factory
from mfac_compress.pipeline.inputs.transforms import load_transforms
from mfac_compress.pipeline.inputs.workers import check_workers
from mfac_compress.pipeline.recipe.schema import (
    ArraysData,
    Augment,
    Data,
    DigitsData,
    ImageFolderData,
    TextData,
)

_SHOWN = 3
_NO_MODEL = Path(os.devnull)


@dataclass(frozen=True)
class DataSplits:
    """The data of a run.

    Attributes:
        calibration: For the gradients.
        recovery: For fine-tuning; None where there is none.
        validation: For the gates, and nothing else.
        overlap: How many samples two splits share, for each pair that shares some; at most
            ``data.max_overlap``.
        augment: Random changes of the images that are trained on.
    """

    calibration: Split
    recovery: Split | None
    validation: Split
    overlap: Mapping[tuple[str, str], int] = field(default_factory=dict)
    augment: ImageChanges = field(default_factory=ImageChanges)

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
        counts = {split.name: len(split) - len(set(split.scan.digests)) for split in self}
        return {name: count for name, count in counts.items() if count}

    @property
    def unstable(self) -> list[str]:
        """Splits whose samples are not the same at every reading: overlaps cannot be seen."""
        return [split.name for split in self if not split.scan.stable]


def load_data(
    section: Data,
    *,
    folder: Path,
    needs_recovery: bool,
    labelled: bool = True,
    recovery_labelled: bool = True,
    target: str = "labels",
    model: Path = _NO_MODEL,
) -> DataSplits:
    """Open the data of a recipe and check that its splits share no samples.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        needs_recovery: Whether the run fine-tunes. Otherwise that split is not opened.
        labelled: Whether calibration needs targets. Otherwise they may be missing.
        recovery_labelled: Whether fine-tuning does.
        target: Name of the target in items that are dicts.
        model: MODEL of the run, which may be a folder with a tokenizer.
    Returns:
        The splits.
    Raises:
        InputError: If data is missing, broken, does not fit the recipe, or is in two splits.
    """
    needed = {"calibration": labelled, "recovery": recovery_labelled, "validation": True}
    if not needs_recovery:
        del needed["recovery"]
    augment, workers = _changes(section, folder), getattr(section, "workers", 0)
    check_workers(workers)
    opened = {
        name: open_split(name, dataset, augment if name == "recovery" else ImageChanges(), workers)
        for name, dataset in _open(section, folder, needed, target, model).items()
    }
    splits = DataSplits(
        opened["calibration"], opened.get("recovery"), opened["validation"], augment=augment
    )
    padded = isinstance(section, TextData) or getattr(section, "collate", None) is not None
    for split in splits:
        # Samples of another type would also never hash alike, and hide an overlap.
        _check_same_form(splits.validation, split, needed[split.name], padded)
    overlap = {
        (first.name, second.name): shared
        for first, second in combinations(splits, 2)
        if (shared := _shared_samples(first, second, section.max_overlap))
    }
    return replace(splits, overlap=overlap)


def augment_of(section: Data) -> Augment:
    """The recipe's section on random changes of images; an empty one for data without that key."""
    return getattr(section, "augment", Augment())


def _changes(section: Data, folder: Path) -> ImageChanges:
    """Make the random changes of images.

    Raises:
        InputError: If its transforms cannot be made.
    """
    augment = augment_of(section)
    return ImageChanges(augment, load_transforms(augment, folder=folder))


def _open(
    section: Data, folder: Path, labelled: Mapping[str, bool], target: str, model: Path
) -> Mapping[str, Dataset]:
    """Open the splits that are needed; ``labelled`` says of each whether it needs targets."""
    if isinstance(section, DigitsData):
        return open_digits(section, folder, labelled)
    if isinstance(section, ArraysData):
        return open_arrays(section, folder, labelled)
    if isinstance(section, ImageFolderData):
        return _open_images(section, folder, labelled)
    if isinstance(section, TextData):
        return open_texts(section, folder, labelled, model)
    return open_factory(section, folder, labelled, target=target)


def _open_images(
    section: ImageFolderData, folder: Path, labelled: Mapping[str, bool]
) -> Mapping[str, Dataset]:
    try:
        from mfac_compress.pipeline.inputs.image_folder import open_folders
    except ModuleNotFoundError as error:
        raise InputError(
            "data.source image_folder needs the package Pillow to read images. It cannot be "
            f"imported ({error}). Install it: pip install 'mfac-compress[images]'."
        ) from error
    return open_folders(section, folder, labelled)


def _check_same_form(first: Split, other: Split, with_targets: bool, padded: bool) -> None:
    expected, found = (_form(split, with_targets, not padded) for split in (first, other))
    if found != expected:
        raise InputError(
            f"data must have samples of one shape and type in all splits. {first.name} has "
            f"{expected}, {other.name} has {found}. Bring the splits into one form."
        )


def _form(split: Split, with_targets: bool, lengths: bool) -> str:
    inputs, targets = split.raw(range(min(2, len(split))))
    if split.dataset.alone:
        inputs = split.dataset.prepare(inputs)
    return form_of(Batch(inputs, targets if with_targets else ()), axis=1, lengths=lengths)


def _shared_samples(first: Split, second: Split, allowed: int) -> int:
    """Count the samples of either split that the other has too; the larger of the two counts.

    Raises:
        InputError: If they are more than allowed.
    """
    places = {digest: at for at, digest in reversed(list(enumerate(first.scan.digests)))}
    pairs = [(places[d], at) for at, d in enumerate(second.scan.digests) if d in places]
    common = {second.scan.digests[at] for _, at in pairs}
    shared = max(len(pairs), sum(digest in common for digest in first.scan.digests))
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
