"""Which calibration samples are used for what: gradients, and a part held out for choices."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac_compress.pipeline.errors import InputError


@dataclass(frozen=True)
class Draws:
    """Random draws from the calibration split, the same for the same fields.

    Args:
        samples: Number of samples in the split.
        samples_per_gradient: Samples whose mean loss makes one gradient.
        holdout_share: Share of the split that no gradient sees.
        seed: Of all draws.
    """

    samples: int
    samples_per_gradient: int
    holdout_share: float
    seed: int

    def gradients(self, step: int, num_gradients: int) -> Tensor:
        """Positions of each gradient's samples. Shape ``[m, samples_per_gradient]``.

        Args:
            step: Number of the pruning step.
            num_gradients: m.

        Raises:
            InputError: If the split has too few of them.
        """
        needed = num_gradients * self.samples_per_gradient
        if needed > len(self.pool):
            raise InputError(
                "calibrate.num_gradients x calibrate.samples_per_gradient must not exceed the "
                f"{len(self.pool)} calibration samples left beside calibrate.holdout. Got "
                f"{num_gradients} x {self.samples_per_gradient} = {needed}. Lower one of "
                "them, or give data.splits.calibration more samples."
            )
        drawn = self.pool[torch.randperm(len(self.pool), generator=self.generator(step))[:needed]]
        return drawn.view(num_gradients, self.samples_per_gradient)

    def generator(self, step: int) -> torch.Generator:
        """Random numbers of one pruning step, on the CPU."""
        return torch.Generator().manual_seed(self.seed * 1000 + step)

    def generator_for(self, purpose: str) -> torch.Generator:
        """Random numbers for something else than gradients, on the CPU."""
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    @property
    def pool(self) -> Tensor:
        """Positions that gradients may be drawn from."""
        return self._shuffled[self._held_out :]

    @property
    def holdout(self) -> Tensor:
        """Positions that no gradient sees, for choices."""
        return self._shuffled[: self._held_out]

    @property
    def _shuffled(self) -> Tensor:
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.seed))

    @property
    def _held_out(self) -> int:
        return round(self.holdout_share * self.samples)
