"""The window of gradients that the m x m representation works on, in memory or on disk."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.sharing import ALONE, Holders
from mfac_compress.mfac.window_inverse import WindowInverse

# Of a window on disk, so many gradients are in memory at once when they are copied.
_ROWS_OF_PART = 16


class GradientWindow:
    """Up to m gradients of length d, filled from the top.

    Args:
        num_gradients: m.
        partition: The blocks of the Fisher, over d columns.
        dtype: Storage of the gradients.
        device: Where they live, and where the inverse is calculated.
        folder: Where to keep the gradients on disk instead of in memory, in a file that has no
            name any more once it is open, so that it is gone with the window, come what may.
        holders: Who hold the columns of a block of which these are a part.

    Raises:
        ValueError: If the folder can not hold the window.
    """

    def __init__(
        self,
        num_gradients: int,
        partition: BlockPartition,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        holders: Holders = ALONE,
    ) -> None:
        self.partition = partition
        self._holders = holders
        self.num_gradients = 0
        self._device = torch.device(device)
        self._on_disk = folder is not None
        shape = (num_gradients, partition.size)
        if folder is None:
            self._rows = torch.empty(shape, dtype=dtype, device=device)
        else:
            self._rows = _mapped(folder, shape, dtype)

    @property
    def mean_gradient(self) -> Tensor:
        """1/m Σ gᵢ. Shape ``[d]``, float64."""
        total = torch.zeros(self.partition.size, dtype=torch.float64, device=self._device)
        for gradient in self._held():
            total += gradient.to(total)
        return total / self.num_gradients

    @property
    def mean_diagonal(self) -> float:
        """Mean of the undamped Fisher's diagonal, 1/(md) Σ ‖gᵢ‖²."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in self._held()]
        return sum(norm.item() ** 2 for norm in norms) / (len(norms) * self.partition.size)

    def add(self, gradients: Tensor) -> None:
        """Append k gradients. Shape ``[k, d]``.

        Raises:
            ValueError: If they do not fit, or overflow the window's dtype.
        """
        stop = self.num_gradients + gradients.shape[0]
        if stop > self._rows.shape[0]:
            raise ValueError(f"A window of {self._rows.shape[0]} gradients is full. Got {stop}.")
        rows = self._rows[self.num_gradients : stop]
        rows.copy_(gradients)
        for row in rows:
            if not torch.isfinite(row).all():
                raise ValueError(
                    f"window_dtype must hold the gradients. Got some beyond {self._rows.dtype}. "
                    "Use float32 or bfloat16."
                )
        self.num_gradients = stop

    def invert(self, damping: float) -> WindowInverse:
        """Factor the Fisher of the gradients held; they are shared, not copied.

        Raises:
            ValueError: If no gradient was added, or the damping is not usable.
            PrecisionError: If rounding would show in the inverse.
        """
        return WindowInverse(
            self._held(), damping, self.partition, self._device, self._on_disk, self._holders
        )

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """What :meth:`add_part` takes, piece by piece: on disk, a few gradients at a time."""
        rows = _ROWS_OF_PART if self._on_disk else self.num_gradients
        for gradients in self._held().split(rows):
            yield {"gradients": gradients}

    def add_part(self, part: dict[str, Tensor]) -> None:
        """Take a part of another window of the same columns."""
        self.add(part["gradients"])

    def _held(self) -> Tensor:
        if not self.num_gradients:
            raise ValueError("A Fisher needs at least one gradient. Got none.")
        return self._rows[: self.num_gradients]


def _mapped(folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor in a file of its own, whose space is reserved and whose name is gone."""
    size = prod(shape) * dtype.itemsize
    with NamedTemporaryFile(dir=folder, prefix="window-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise ValueError(
                f"folder must have {size / 1e9:,.1f} GB free for the gradients. Got {folder}: "
                f"{error.strerror}. Give another folder, or fewer gradients."
            ) from error
        rows = torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype)
    return rows.view(shape)
