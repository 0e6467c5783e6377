"""How much memory there is, and whether gradients and inverse fit into it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mfac_compress.mfac.plan import InversePlan, plan_inverse
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.free_memory import SHARE_OF_FREE, free_memory
from mfac_compress.pipeline.ranks import Ranks


@dataclass(frozen=True)
class MemoryBudget:
    """What one thing may take.

    Attributes:
        bytes: The most.
        source: Where that number comes from.
    """

    bytes: int
    source: str

    @classmethod
    def of(cls, given: int | None, device: torch.device, processes: int = 1) -> "MemoryBudget":
        """The recipe's budget, or else most of the free memory.

        Args:
            given: The recipe's ``run.memory_budget`` in bytes.
            device: Where the memory is.
            processes: Those of one machine that share it.
        """
        if given is not None:
            return cls(given, "run.memory_budget")
        if device.type == "cuda":
            free, what = torch.cuda.mem_get_info(device)[0], "80% of the GPU's free memory"
        else:
            free, of = free_memory()
            what = f"80% of {of}"
            if processes > 1:
                free //= processes
                what += f", for each of {processes} processes"
        return cls(int(SHARE_OF_FREE * free), what)

    def __str__(self) -> str:
        return f"{readable_bytes(self.bytes)} ({self.source})"


@dataclass(frozen=True)
class MemoryPlan:
    """What the inverse needs, and what there is.

    Attributes:
        inverse: Representation and bytes.
        budget: The most that may be used.
    """

    inverse: InversePlan
    budget: MemoryBudget

    @property
    def fits(self) -> bool:
        """Whether it can be done at all, be it with the gradients on disk."""
        return self.on_disk or self.inverse.total_bytes <= self.budget.bytes

    @property
    def on_disk(self) -> bool:
        """Whether the gradients live on disk. Sums on blocks are all in use at all times."""
        inverse = self.inverse
        return (
            inverse.representation == "window"
            and inverse.inverse_bytes <= self.budget.bytes < inverse.total_bytes
        )

    @property
    def advice(self) -> str:
        """What to say where it does not fit."""
        smaller = (
            "Lower fisher.block_size"
            if self.inverse.representation == "blocks"
            else "Set fisher.block_size to 128, or lower calibrate.num_gradients"
        )
        return (
            "run.memory_budget must hold gradients and inverse, "
            f"{readable_bytes(self.inverse.total_bytes)}. "
            f"Got {self.budget}. "
            f"{smaller}, or prune fewer tensors."
        )


def memory_plan(
    fishers: Iterable[FisherShape], budget: int | None, device: torch.device, ranks: Ranks
) -> MemoryPlan:
    """Set an inverse's needs against the recipe's budget, or against the free memory.

    Of several Fishers, one after the other, the one that needs most counts. Of each process, where
    there are several: the one with the most columns counts, and the free memory is shared by those
    of one machine.

    Args:
        fishers: What is inverted.
        budget: The recipe's ``run.memory_budget`` in bytes.
        device: Where gradients and inverse are kept.
        ranks: Who share the columns.

    Raises:
        InputError: If there are not enough blocks for all processes.
    """
    limit = MemoryBudget.of(budget, device, ranks.local_size)
    plans = [
        MemoryPlan(
            plan_inverse(
                fisher.partition,
                fisher.num_gradients,
                getattr(torch, fisher.window_dtype),
                shard.partition,
            ),
            limit,
        )
        for fisher in {fisher.num_gradients: fisher for fisher in fishers}.values()
        for shard in fisher.shards(ranks.size)
    ]
    return max(plans, key=lambda plan: (not plan.fits, plan.inverse.total_bytes))


def readable_bytes(count: int) -> str:
    """Bytes for people: ``30.4 kB``, ``1,234.5 MB``; whole below 1 kB.

    >>> readable_bytes(30373)
    '30.4 kB'
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"
