"""The Fisher as the gradients themselves, for the m x m representation: in memory or on disk."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from mfac_compress.mfac.checks import check_filled, check_gradients
from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.process_group import SINGLE, ProcessGroup

# Number of gradients in memory at once when a window on disk is copied.
_ROWS_OF_PART = 16


class GradientWindow:
    """Up to m gradients of length d, filled row by row.

    Args:
        num_gradients: m.
        partition: The blocks of the Fisher, over d columns.
        dtype: Storage dtype of the gradients.
        device: Device of the gradients and of the inverse.
        folder: Keep the gradients on disk in this folder instead of in memory. The file is
            unlinked once it is open, so the system frees its space even if the process is killed.
        group: The processes that hold the columns of the block that these are part of.

    Raises:
        ValueError: If there is not enough space in the folder.
    """

    def __init__(
        self,
        num_gradients: int,
        partition: BlockPartition,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.partition = partition
        self.group = group
        self.num_gradients = 0
        self.device = torch.device(device)
        self.on_disk = folder is not None
        shape = (num_gradients, partition.size)
        if folder is None:
            self._rows = torch.empty(shape, dtype=dtype, device=device)
        else:
            self._rows = _mapped(folder, shape, dtype)

    @classmethod
    def holding(cls, gradients: Tensor, partition: BlockPartition) -> "GradientWindow":
        """A full window of these gradients ``[m, d]``, which are kept by reference."""
        check_gradients(gradients, partition.size)
        window = cls(0, partition, gradients.dtype, gradients.device)
        window._rows, window.num_gradients = gradients, gradients.shape[0]
        return window

    @property
    def mean_gradient(self) -> Tensor:
        """1/m Σ gᵢ. Shape ``[d]``, float64."""
        total = torch.zeros(self.partition.size, dtype=torch.float64, device=self.device)
        for gradient in self.held:
            total += gradient.to(total)
        return total / self.num_gradients

    @property
    def mean_diagonal(self) -> float:
        """Mean of the undamped Fisher's diagonal, 1/(md) Σ ‖gᵢ‖²."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in self.held]
        return sum(norm.item() ** 2 for norm in norms) / (len(norms) * self.partition.size)

    def add(self, gradients: Tensor) -> None:
        """Append k gradients. Shape ``[k, d]``.

        Raises:
            ValueError: If they do not fit, or overflow the window's dtype.
        """
        check_gradients(gradients, self.partition.size)
        stop = self.num_gradients + gradients.shape[0]
        if stop > self._rows.shape[0]:
            raise ValueError(f"A window of {self._rows.shape[0]} gradients is full. Got {stop}.")
        rows = self._rows[self.num_gradients : stop]
        rows.copy_(gradients)
        for row in rows:
            if not torch.isfinite(row).all():
                raise ValueError(
                    "window_dtype must be able to hold the gradients. "
                    f"Got some outside the range of {self._rows.dtype}. "
                    "Use float32 or bfloat16."
                )
        self.num_gradients = stop

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Yield the state for :meth:`add_part`; of a window on disk, a few gradients at a time."""
        rows = _ROWS_OF_PART if self.on_disk else self.num_gradients
        for gradients in self.held.split(rows):
            yield {"gradients": gradients}

    def add_part(self, part: dict[str, Tensor]) -> None:
        """Add a part of another window with the same columns."""
        self.add(part["gradients"])

    @property
    def held(self) -> Tensor:
        """G, the gradients added so far, shared with this window. Shape ``[m, d]``."""
        check_filled(self.num_gradients)
        return self._rows[: self.num_gradients]


def _mapped(folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a tensor mapped to a new file, whose space is reserved and which is unlinked."""
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
