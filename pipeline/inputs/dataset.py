"""What every source of data gives for a split: samples by position, as trees of tensors.

Layout: the first dimension of each tensor counts samples (images are ``[n, channels, height,
width]``). Inputs are float32, or integers where the data holds numbers of things (tokens); targets
are int64 for classes and float32 otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal, Protocol

from torch import Tensor

from mfac_compress.mfac.batch import Batch, Tree, named_tensors
from mfac_compress.pipeline.quoting import dtype_name

Augmentation = Callable[[Tree], Tree]
"""Of raw inputs; images have their channels first."""


def unchanged(inputs: Tree) -> Tree:
    """No augmentation."""
    return inputs


class Dataset(Protocol):
    """Samples by position. They are hashed and checked in one place, whatever the source.

    Attributes:
        key: Recipe key that names the data, for messages.
        kind: ``memory`` cannot change, ``storage`` must not, ``code`` may outside of validation.
        alone: Whether samples are hashed one by one, because a batch gives them the type or the
            length of others.
        preparation: What :meth:`prepare` does; changes with it.
        lengths: Of each sample, where those of a batch are filled up to the longest; None where
            they are not, or it is not known. Shape ``[n]``.
    """

    key: str
    kind: Literal["memory", "storage", "code"]
    alone: bool
    preparation: str
    lengths: Tensor | None

    def __len__(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Sequence[Any]:
        """Samples in the form that :meth:`collate` takes."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """One batch of samples, on the CPU, before :meth:`prepare`."""
        ...

    def prepare(self, inputs: Tree, augment: Augmentation = unchanged) -> Tree:
        """What the model sees of a batch's inputs, after random changes of its raw images."""
        ...

    def describe(self, position: int) -> str:
        """Where a sample comes from, for messages."""
        ...


def named_parts(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a batch with its place, for example ``inputs.input_ids``."""
    yield from named_tensors({"inputs": batch.inputs, "targets": batch.targets})


def form_of(batch: Batch, *, axis: int, lengths: bool = True) -> str:
    """Name, type and shape of each tensor, in the order of their names.

    Args:
        batch: A batch, or one item.
        axis: First one to name: 1 leaves out that of the samples.
        lengths: Whether the axes' lengths count, and not only their number.
    """

    def described(name: str, tensor: Tensor) -> str:
        shape = list(tensor.shape[axis:])
        axes = str(shape) if lengths else f"of {len(shape)} axes"
        return f"{name} {dtype_name(tensor.dtype)} {axes}"

    return ", ".join(described(*part) for part in sorted(named_parts(batch), key=itemgetter(0)))


def as_target(targets: Tensor) -> Tensor:
    """Give targets the type that losses take: float32 for floats, int64 (classes) for the rest."""
    return targets.float() if targets.is_floating_point() else targets.long()
