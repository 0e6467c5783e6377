"""The recipe's ``data`` section: the built-in sources, and torch datasets of the user's own."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mfac_compress.pipeline.recipe.data_parts import (
    DataSection,
    FileRows,
    FilesSection,
    RowRange,
    Rows,
    row_overlaps,
)
from mfac_compress.pipeline.recipe.section import (
    Arguments,
    CallableName,
    Count,
    Index,
    NoSwitch,
    Number,
    Positive,
    Section,
    Text,
    duplicates,
)
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource
from mfac_compress.pipeline.recipe.text_schema import TextData

DIGITS = 1797
"""Samples of the bundled digits."""

ArrayNames = Annotated[tuple[Text, ...], Field(min_length=1)]


def _channels(mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[RecipeIssue]:
    if len(mean) > 1 and len(std) > 1 and len(mean) != len(std):
        yield RecipeIssue(
            ("std",),
            f"must hold one number or as many as data.mean, which has {len(mean)}. Got {len(std)}.",
        )


Transform = Text | Annotated[dict[Text, Arguments], Field(min_length=1, max_length=1)]
"""Name of a transform of torchvision, or its name and its arguments."""


class Augment(Section):
    """Random changes of samples in recovery, and of those that batch-norm statistics are taken of;
    never of those for gradients, choices or validation."""

    crop: Index = 0
    """Zero padding in pixels on each side before a random crop to the original size."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    transforms: CallableName | Annotated[tuple[Transform, ...], Field(min_length=1)] | None = None
    """Further changes of each image, after these. Transforms of torchvision.transforms.v2 by name,
    with arguments where they have any: `[{RandomErasing: {p: 0.5}}, TrivialAugmentWide]`, which
    needs the extra `vision`. Or `package.module:callable`, or `path/to/file.py:callable`: your own
    function without arguments that returns a transform, also of samples that are no images. They
    are given raw samples, such as images `[channels, height, width]`, before `mean` and `std`,
    whose shape and type must stay."""


class ArrayRows(FileRows):
    """A file with arrays, or a part of it."""

    x: Text | None = None
    """Name of the input array in this split. Default: `data.x`."""
    y: Text | None = None
    """Name of the target array in this split. Default: `data.y`."""


class Folder(Section):
    """A folder with one sub-folder of images per class."""

    path: Text
    """Relative to `data.folder`."""


Workers = Annotated[int, Field(ge=0, le=256), NoSwitch]


class DigitsSplits(Section):
    """Disjoint parts of the 1,797 digits."""

    calibration: Rows = Rows(rows=(0, 600))
    recovery: Rows = Rows(rows=(600, 1200))
    validation: Rows = Rows(rows=(1200, 1797))


class DigitsData(DataSection):
    """1,797 handwritten digits of 8x8 pixels, as `[1, 8, 8]` images in 0..1."""

    source: Literal["digits"]
    splits: DigitsSplits = DigitsSplits()

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        ranges = {name: split.rows for name, split in self.splits}
        for name, (_, stop) in ranges.items():
            if stop > DIGITS:
                yield RecipeIssue(
                    ("splits", name, "rows"),
                    f"must end at {DIGITS}, the number of digits, or before. Got {stop}.",
                )
        yield from row_overlaps(ranges, self.max_overlap)


class ArraySplits(Section):
    """Disjoint sets of samples. `recovery` is needed only to train."""

    calibration: ArrayRows
    recovery: ArrayRows | None = None
    validation: ArrayRows


class ArraysData(FilesSection):
    """Arrays `x` `[n, ...]` and `y` `[n, ...]` in an .npz file or a folder of .npy files.

    The model sees `(x / divide_by - mean) / std` as float32, or integers as they are.
    """

    source: Literal["arrays"]
    x: Text | ArrayNames = "x"
    """Name of the input array, or a list of names, such as `[input_ids, attention_mask]`: the model
    is then called with these arrays by name."""
    y: Text | ArrayNames = "y"
    """Name of the target array, or a list of names: `task.loss` and `task.metric` then get a dict
    of these arrays."""
    dtype: Literal["auto", "float32", "int64"] = "auto"
    """What the model takes. `int64` is for token numbers and the like. `auto`: `int64` where the
    array holds integers of 32 or 64 bits and nothing is done to them (`layout`, `divide_by`,
    `mean`, `std` and `augment` are left out), else `float32`."""
    layout: Literal["as_is", "NHWC", "NCHW"] = "as_is"
    """`NHWC` images are turned to the NCHW that PyTorch takes."""
    divide_by: Positive = 1.0
    """255 brings bytes to 0..1."""
    mean: tuple[Number, ...] = ()
    """One number, or one per channel. Default: 0."""
    std: tuple[Positive, ...] = ()
    """One number, or one per channel. Default: 1."""
    augment: Augment = Augment()
    splits: ArraySplits

    @property
    def prepares(self) -> bool:
        """Whether anything is done to the inputs."""
        numbers = self.divide_by != 1 or self.mean or self.std
        return bool(numbers or self.layout != "as_is" or self.augment != Augment())

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        inputs, targets = (((n,) if isinstance(n, str) else n) for n in (self.x, self.y))
        yield from duplicates("x", inputs)
        yield from duplicates("y", targets)
        if both := set(inputs) & set(targets):
            yield RecipeIssue(
                ("y",), f"must name other arrays than data.x. Got {min(both)!r} for both."
            )
        if not isinstance(self.x, str) and self.prepares:
            yield RecipeIssue(
                ("x",),
                "must be one name where layout, divide_by, mean, std or augment are set. "
                f"Got {len(inputs)} names in a list.",
            )
        if self.dtype == "int64" and self.prepares:
            yield RecipeIssue(
                ("dtype",),
                "must be float32 or auto where layout, divide_by, mean, std or augment are set: "
                "int64 inputs are left as they are. Got int64. Take one of the two away.",
            )
        yield from _channels(self.mean, self.std)
        by_array: dict[Any, dict[str, RowRange | None]] = {}
        for name, split in self.splits:
            if split is not None:
                yield from self._renamed_lists(name, split)
                array = self.resolve(split.path, source.folder), split.x or self.x
                by_array.setdefault(array, {})[name] = split.rows
        for ranges in by_array.values():
            yield from row_overlaps(ranges, self.max_overlap)

    def _renamed_lists(self, name: str, split: ArrayRows) -> Iterator[RecipeIssue]:
        """Names of a split's own, where the names of several arrays are those of the inputs."""
        for key, own, names in (("x", split.x, self.x), ("y", split.y, self.y)):
            if own is not None and not isinstance(names, str):
                yield RecipeIssue(
                    ("splits", name, key),
                    f"must be left out where data.{key} is a list: its names are those by which "
                    f"the arrays are passed on. Got {own!r}.",
                )


class FolderSplits(Section):
    """Disjoint folders. `recovery` is needed only to train."""

    calibration: Folder
    recovery: Folder | None = None
    validation: Folder


class ImageFolderData(FilesSection):
    """Images in `path/class/*.png|jpg|...`, classes numbered in alphabetical order.

    They become RGB as in torchvision: transparency is dropped, the orientation that a camera notes
    in the file is not applied. Gray images of 16 bits keep all their levels.
    """

    source: Literal["image_folder"]
    resize: Count | None = None
    """Pixels of the shorter side after resizing. Default: as it is."""
    crop: Count | None = None
    """Side in pixels of a square cut from the middle. Default: none."""
    mean: tuple[Number, ...] = ()
    """One number, or one per channel, of pixels in 0..1. Default: 0."""
    std: tuple[Positive, ...] = ()
    """One number, or one per channel. Default: 1."""
    workers: Workers = 0
    """Processes that read samples ahead, in batches. 0: none. The first reading of all samples is
    in one process."""
    augment: Augment = Augment()
    splits: FolderSplits

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.resize and self.crop and self.crop > self.resize:
            yield RecipeIssue(
                ("crop",), f"must be at most data.resize = {self.resize}. Got {self.crop}."
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, 3):
                yield RecipeIssue(
                    (key,),
                    f"must hold one number or three: images are read as RGB. Got {len(values)}.",
                )
        folders = [
            (name, self.resolve(split.path, source.folder)) for name, split in self.splits if split
        ]
        for (first, one), (second, other) in itertools.combinations(folders, 2):
            if one == other:
                yield RecipeIssue(
                    ("splits", second, "path"),
                    f"must be another folder than that of data.splits.{first}. Got {one} for both.",
                )


class FactoryData(DataSection):
    """Your own torch datasets.

    An item is `(inputs, targets)`, or one dict of which `task.target` is the target and the rest
    are the inputs by name. Inputs and targets are tensors, arrays, numbers or lists of numbers, or
    tuples or dicts of these.
    """

    source: Literal["factory"] = "factory"
    factory: CallableName
    """`package.module:callable` or `path/to/file.py:callable`. Returns a dict with `calibration`,
    `validation` and, to train, `recovery`."""
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    workers: Workers = 0
    """Processes that read samples ahead, in batches. 0: none. The first reading of all samples is
    in one process. Samples that draw random numbers draw others with another number of these."""
    collate: CallableName | None = None
    """Makes a batch of a list of items, and pads those whose lengths differ. Returns `(inputs,
    targets)` or one dict. Default: items of one shape are stacked."""


def _factory_is_a_source(data: Any) -> Any:
    if isinstance(data, dict) and "factory" in data and "source" not in data:
        return {"source": "factory", **data}
    return data


Data = Annotated[
    Annotated[
        DigitsData | ArraysData | ImageFolderData | TextData | FactoryData,
        Field(discriminator="source"),
    ],
    BeforeValidator(_factory_is_a_source),
]
