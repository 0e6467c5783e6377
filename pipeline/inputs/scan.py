"""One reading of a whole split: what its samples hash to, and whether they can be used."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, named_tensors
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.dataset import Dataset, form_of, named_parts
from mfac_compress.pipeline.inputs.task_checks import IGNORED

_CHUNK = 1 << 26
"""Bytes looked at together, of data that may not fit in memory."""
_MOST_AT_ONCE = 1024
_READ_TWICE = 8
_COLLATED = 32
_SHOWN = 5


@dataclass(frozen=True)
class Scan:
    """What the first reading of a split found.

    Attributes:
        digests: Hash of each sample's inputs, equal where the numbers are.
        pairs: Hash of each sample's inputs and targets.
        extremes: Positions of the samples with the smallest and largest whole numbers, and of the
            longest.
        stable: Whether a second reading gave the same; otherwise overlaps cannot be seen.
        fingerprint: Hash of all samples and what is done to them.
    """

    digests: Sequence[bytes]
    pairs: Sequence[bytes]
    extremes: Sequence[int]
    stable: bool
    fingerprint: str


def scan(dataset: Dataset, *, fixed: bool) -> Scan:
    """Read every sample once, and the first ones of the user's code again.

    Args:
        dataset: A split's.
        fixed: Whether its samples must be the same at every reading.
    Raises:
        InputError: If a sample cannot be read, has NaN or Inf, or changes and must not.
    """
    digests: list[bytes] = []
    pairs: list[bytes] = []
    forms: dict[str, int] = {}
    extremes, finite = _Extremes(), _Finite(dataset)
    start, count = 0, 1
    while start < len(dataset):
        positions = range(start, min(start + count, len(dataset)))
        nbytes = 0
        for batch in hashed_batches(dataset, dataset.read(positions)):
            if not forms:
                extremes.choose(dataset.prepare(batch.inputs))
            form = form_of(batch, axis=1, lengths=not dataset.alone)
            forms.setdefault(form, len(digests))
            if dataset.kind == "code":
                _check_one_form(dataset, forms)
            inputs, targets = sample_digests(batch.inputs), sample_digests(batch.targets)
            for name, tensor in named_parts(batch):
                nbytes += tensor.nbytes
                finite.add(name, tensor, len(digests))
                extremes.add(name, tensor, len(digests))
            digests += inputs
            pairs += [a + b for a, b in zip(inputs, targets, strict=True)]
        start += len(positions)
        count = max(1, min(_MOST_AT_ONCE, _CHUNK * len(positions) // nbytes))
    finite.check()
    total = hashlib.sha256(b"".join(pairs))
    total.update(repr((dataset.preparation, sorted(forms))).encode())
    if dataset.alone:
        total.update(b"".join(_together(dataset)))
    stable = dataset.kind != "code" or _is_stable(dataset, pairs, fixed)
    return Scan(digests, pairs, extremes.positions, stable, total.hexdigest())


def hashed_batches(dataset: Dataset, samples: Sequence[object]) -> Iterator[Batch]:
    """Samples in the batches in which they are hashed: all together, or each by itself."""
    if dataset.alone:
        yield from (dataset.collate([sample]) for sample in samples)
    else:
        yield dataset.collate(samples)


def _together(dataset: Dataset) -> Iterator[bytes]:
    """Hash the first samples as one batch: padding is to be seen in no sample by itself."""
    batch = dataset.collate(dataset.read(range(min(_COLLATED, len(dataset)))))
    yield form_of(batch, axis=0).encode()
    yield from pair_digests([batch])


def pair_digests(batches: Iterable[Batch]) -> list[bytes]:
    """Hash inputs and targets of each sample."""
    return [
        a + b
        for batch in batches
        for a, b in zip(sample_digests(batch.inputs), sample_digests(batch.targets), strict=True)
    ]


def sample_digests(tree: Tree) -> list[bytes]:
    """Hash each sample of a batch; equal where the numbers are.

    Args:
        tree: Tensors on the CPU, of types that do not change from batch to batch.
    """
    columns = [_rows(tensor) for _, tensor in sorted(named_tensors(tree), key=lambda item: item[0])]
    if len(columns) == 1:
        return _digests(columns[0])
    hashed = zip(*map(_digests, columns), strict=True)
    return [hashlib.sha256(b"".join(parts)).digest() for parts in hashed]


def _digests(rows: np.ndarray) -> list[bytes]:
    if rows.ndim == 1 and rows.dtype == np.int64:  # a class number is its own hash
        return [number.to_bytes(8, "little", signed=True) for number in rows.tolist()]
    return [hashlib.sha256(row).digest() for row in rows]


def check_unchanged(
    found: Sequence[bytes],
    expected: Sequence[bytes],
    positions: Sequence[int],
    describe: Callable[[int], str],
) -> None:
    """Refuse samples that are not what they were when the run began.

    Args:
        found: Hashes of the samples read now.
        expected: Those of the whole split, read at first.
        positions: Of the samples read now.
        describe: Names the sample at a position.
    Raises:
        InputError: If one has changed.
    """
    for digest, position in zip(found, positions, strict=True):
        if digest != expected[position]:
            raise InputError(
                "data must stay the same while it is used. Another reading gave something else for "
                f"{describe(position)}. Take random changes out of the data set, or wait until "
                "nothing writes to its files."
            )


def _rows(tensor: Tensor) -> np.ndarray:
    numbers = tensor.numpy()
    if numbers.dtype.kind == "f":
        numbers = numbers + numbers.dtype.type(0)  # -0.0 becomes 0.0
    return np.ascontiguousarray(numbers)


def _check_one_form(dataset: Dataset, forms: dict[str, int]) -> None:
    if len(forms) > 1:
        found = ", and ".join(f"{form} in {dataset.describe(at)}" for form, at in forms.items())
        raise InputError(
            f"{dataset.key} must give items of one form, or data.collate must pad them. "
            f"Got {found}."
        )


def _is_stable(dataset: Dataset, pairs: Sequence[bytes], fixed: bool) -> bool:
    first = range(min(_READ_TWICE, len(pairs)))
    again = pair_digests(hashed_batches(dataset, dataset.read(first)))
    if fixed:
        check_unchanged(again, pairs, first, dataset.describe)
    return again == pairs[: len(first)]


class _Finite:
    """Collects samples with NaN or Inf."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._broken: dict[str, list[int]] = {}

    def add(self, name: str, tensor: Tensor, start: int) -> None:
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            rows = finite.reshape(len(tensor), -1).all(1).logical_not().nonzero().flatten()
            self._broken.setdefault(name, []).extend((rows + start).tolist())

    def check(self) -> None:
        for name, positions in self._broken.items():
            named = ", ".join(map(self._dataset.describe, positions[:_SHOWN]))
            raise InputError(
                f"{self._dataset.key} must have finite {name}, within what float32 holds. Got NaN "
                f"or Inf in {len(positions)} samples, the first {named}."
            )


class _Extremes:
    """Finds the longest sample, and those with the smallest and the largest of whole numbers."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, int]] = {}
        self._floats: set[str] = set()

    def choose(self, prepared: Tree) -> None:
        """Pass over inputs that the model sees as floats, such as bytes of images."""
        parts = named_tensors({"inputs": prepared})
        self._floats = {name for name, tensor in parts if tensor.is_floating_point()}

    def add(self, name: str, tensor: Tensor, start: int) -> None:
        """Look at some more samples of one tensor; ``start`` is the first one's position."""
        self._keep(name, "longest", tensor[0].numel(), start)
        if tensor.is_floating_point() or name in self._floats:
            return
        flat = tensor.reshape(len(tensor), -1).numpy()
        if name.startswith("targets"):
            # The smallest class is sought; a sample without any keeps IGNORED, and is found.
            flat = np.where(flat == IGNORED, flat.max(1, keepdims=True), flat)
        low, high = flat.min(1), flat.max(1)
        self._keep(name, "low", -int(low.min()), start + int(low.argmin()))
        self._keep(name, "high", int(high.max()), start + int(high.argmax()))

    def _keep(self, name: str, which: str, value: int, position: int) -> None:
        if (name, which) not in self._found or value > self._found[name, which][0]:
            self._found[name, which] = value, position

    @property
    def positions(self) -> list[int]:
        return [position for _, position in self._found.values()]
