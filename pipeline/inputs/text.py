"""Data in files of texts, as numbers of tokens."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import resolved
from mfac_compress.pipeline.inputs.dataset import Augmentation, unchanged
from mfac_compress.pipeline.inputs.text_files import read_rows
from mfac_compress.pipeline.inputs.tokens import TextTokenizer, open_tokenizer
from mfac_compress.pipeline.quoting import listed, shown
from mfac_compress.pipeline.recipe.schema import TextData

_MOST_CLASSES = 1_000_000


class _Sample(NamedTuple):
    """Token numbers and types, shape ``[2, length]``, and the target."""

    tokens: np.ndarray
    target: int | float


class TextDataset:
    """Texts cut into tokens when the run begins; a batch is as long as its longest text.

    Of pairs that are ``apart``, the sample at 2k is the first text of pair k, that at 2k + 1 the
    second, and both have the pair's target.

    Args:
        samples: All of them.
        section: The recipe's ``data``.
        pad: Number of the token that fills a batch.
        key: Of the split in the recipe.
        path: Of the file, as the recipe writes it.
        start: Number of the first row in the file.
        preparation: What has been done to the texts.
    """

    kind: Literal["memory"] = "memory"
    alone = True
    """Padding depends on what else is in a batch."""

    def __init__(
        self,
        samples: Sequence[_Sample],
        section: TextData,
        pad: int,
        key: str,
        path: str,
        start: int,
        preparation: str,
    ) -> None:
        self._samples, self._section, self._pad = samples, section, pad
        self._path, self._start = path, start
        self.key, self.preparation = key, preparation
        self.lengths = torch.tensor([sample.tokens.shape[1] for sample in samples])

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, positions: Sequence[int]) -> list[_Sample]:
        return [self._samples[at] for at in positions]

    def collate(self, samples: Sequence[_Sample]) -> Batch:
        lengths = torch.tensor([sample.tokens.shape[1] for sample in samples])
        longest = int(lengths.max())
        ids = torch.full((len(samples), longest), self._pad)
        types = torch.zeros_like(ids)
        for row, (tokens, _) in enumerate(samples):
            ids[row, : tokens.shape[1]], types[row, : tokens.shape[1]] = torch.from_numpy(tokens)
        made = {
            "input_ids": ids,
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "token_type_ids": types,
        }
        return Batch(
            {name: made[name] for name in self._section.inputs},
            self._targets([sample.target for sample in samples]),
        )

    def prepare(self, inputs: Tree, augment: Augmentation = unchanged) -> Tree:
        return augment(inputs)

    def describe(self, position: int) -> str:
        apart = self._section.pairs == "apart"
        row, text = divmod(position, 2) if apart else (position, 0)
        which = f", text {text + 1}" if apart else ""
        return f"row {self._start + row} of {shown(self._path)}{which}"

    def _targets(self, targets: Sequence[int | float]) -> Tensor:
        is_class = self._section.label_type == "class"
        return torch.tensor(targets, dtype=torch.int64 if is_class else torch.float32)


def open_texts(
    section: TextData, folder: Path, labelled: Mapping[str, bool], model: Path
) -> dict[str, TextDataset]:
    """Open the files of a ``text`` recipe.

    Args:
        section: The recipe's ``data``.
        folder: Where relative paths start: the recipe's folder.
        labelled: Splits to open, and whether each needs targets.
        model: MODEL of the run, whose tokenizer is used where the recipe names none.
    Raises:
        InputError: If a file or the tokenizer cannot be read, or a row is not what it has to be.
    """
    if section.tokenizer is None and not model.is_dir():
        raise InputError(
            "data.tokenizer must name a folder with tokenizer.json where MODEL is no folder. Got "
            "none."
        )
    of_model = section.tokenizer is None
    tokenizer = open_tokenizer(
        model if of_model else resolved(str(section.tokenizer), folder),
        section.max_length,
        is_pair=section.pairs == "together" and len(section.columns) > 1,
    )
    return {
        name: _open(section, folder, name, needs, tokenizer) for name, needs in labelled.items()
    }


def _open(
    section: TextData, folder: Path, name: str, labelled: bool, tokenizer: TextTokenizer
) -> TextDataset:
    key, split = f"data.splits.{name}", getattr(section.splits, name)
    if split is None:
        raise InputError(f"{key} must be given where the recipe trains. Got none.")
    if labelled and section.label is None:
        raise InputError(f"data.label must be given: {name} needs targets. Got none.")
    texts, targets = _read(section, folder, key, split.path, split.rows, labelled)
    apart = section.pairs == "apart"
    if apart:
        units = [text for pair in texts for text in pair]
        targets = [target for target in targets for _ in range(2)]
    else:
        units = texts if len(section.columns) > 1 else [text for (text,) in texts]
    samples = [_Sample(*one) for one in zip(tokenizer.encode(units), targets, strict=True)]
    first = split.rows[0] if split.rows else 0
    dataset = TextDataset(
        samples,
        section,
        tokenizer.pad,
        f"{key}.path",
        split.path,
        first,
        repr((tokenizer.digest, section.inputs, section.pairs)),
    )
    _check_tokens(dataset, samples, section, tokenizer)
    return dataset


def _read(
    section: TextData,
    folder: Path,
    key: str,
    given: str,
    rows: tuple[int, int] | None,
    labelled: bool,
) -> tuple[list[tuple[str, ...]], list[int | float]]:
    """The texts of each row, and its target."""
    start, stop = rows or (0, math.inf)
    columns = (*section.columns, section.label) if labelled else section.columns
    path = section.resolve(given, folder)
    texts: list[tuple[str, ...]] = []
    targets: list[int | float] = []
    found = -1
    for found, cells in read_rows(path, columns, header=section.header, given=given, key=key):
        if found >= stop:
            break
        if found < start:
            continue
        where = f"Row {found} of {shown(given)} ({key}.path)"
        *texts_here, target = cells if labelled else (*cells, None)
        if not all(text.strip() for text in texts_here):
            raise InputError(f"{where} must have text. It is empty. Remove the row.")
        texts.append(tuple(texts_here))
        targets.append(0 if target is None else _target(section, target, where))
    if rows and found + 1 < stop:
        raise InputError(
            f"{key}.rows must be rows that {shown(given)} has. Got {list(rows)}, and it has "
            f"{found + 1}."
        )
    if not texts:
        raise InputError(f"{key}.path must have rows. {shown(given)} has none.")
    return texts, targets


def _target(section: TextData, text: str, where: str) -> int | float:
    text = text.strip()
    if section.label_type == "score":
        number = _number(text)
        if number is None:
            raise InputError(f"{where} must have a finite number as its label. Got {shown(text)}.")
        return number
    if section.classes:
        if text not in section.classes:
            raise InputError(
                f"{where} must have one of data.classes as its label: {listed(section.classes)}. "
                f"Got {shown(text)}."
            )
        return section.classes.index(text)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
    if number is None or number >= _MOST_CLASSES:
        raise InputError(
            f"{where} must have the number of a class as its label, from 0. Got {shown(text)}. "
            "Name the classes in data.classes, or set data.label_type: score."
        )
    return number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _check_tokens(
    dataset: TextDataset,
    samples: Sequence[_Sample],
    section: TextData,
    tokenizer: TextTokenizer,
) -> None:
    for position, (tokens, _) in enumerate(samples):
        if not tokens.shape[1]:
            raise InputError(
                f"Texts must have a token or more. The tokenizer of {tokenizer.folder} finds none "
                f"in {dataset.describe(position)}. Remove the row."
            )
        if tokenizer.marks_pairs and "token_type_ids" not in section.inputs and tokens[1].any():
            raise InputError(
                "data.inputs must have token_type_ids: by them the model tells the texts of a pair "
                f"apart. Got {', '.join(section.inputs)}."
            )
