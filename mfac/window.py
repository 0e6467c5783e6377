"""The window of gradients that the m x m representation works on."""

import torch
from torch import Tensor

from mfac_compress.mfac.partition import BlockPartition
from mfac_compress.mfac.window_inverse import WindowInverse


class GradientWindow:
    """Up to m gradients of length d, filled from the top.

    Args:
        num_gradients: m.
        partition: The blocks of the Fisher, over d columns.
        dtype: Storage of the gradients.
        device: Where they live.
    """

    def __init__(
        self,
        num_gradients: int,
        partition: BlockPartition,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.partition = partition
        self.num_gradients = 0
        self._rows = torch.empty(num_gradients, partition.size, dtype=dtype, device=device)

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
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"window_dtype must hold the gradients. Got some beyond {self._rows.dtype}. "
                "Use float32 or bfloat16."
            )
        self.num_gradients = stop

    def invert(self, damping: float) -> WindowInverse:
        """Factor the Fisher of the gradients held; they are shared, not copied.

        Raises:
            ValueError: If no gradient was added, or the damping is not usable.
        """
        if not self.num_gradients:
            raise ValueError("A Fisher needs at least one gradient. Got none.")
        return WindowInverse(self._rows[: self.num_gradients], damping, self.partition)

    def state(self) -> dict[str, Tensor]:
        """What :meth:`load_state` reads back."""
        return {"gradients": self._rows[: self.num_gradients]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the gradients of another window of the same size."""
        self.num_gradients = 0
        self.add(state["gradients"])
