"""What goes into each block of the pruned model, and what should come out of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.batch import Tree
from mfac_compress.mfac.layerwise.cuts import Block
from mfac_compress.mfac.layerwise.run import run
from mfac_compress.mfac.layerwise.tracing import Program

Values = dict[Node, Any]


@dataclass(frozen=True, eq=False)
class Chain:
    """The blocks of a pruned model and of the dense one, which run one after the other.

    Args:
        program: Of both.
        blocks: Of both.
        pruned: Parameters and buffers of the pruned model. They may change.
        dense: Those of the dense model.
    """

    program: Program
    blocks: Sequence[Block]
    pruned: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]

    @torch.no_grad()
    def run(self, number: int, state: Mapping[str, Tensor], values: Values) -> Values:
        """Run one block.

        Args:
            number: Of the block.
            state: The pruned model's or the dense one's.
            values: The inputs' and those that earlier blocks gave.

        Returns:
            What this block gives, and what else later blocks need of earlier ones.
        """
        block = self.blocks[number]
        given = run(self.program, block.nodes, state, values, block.gives)
        later = {node for after in self.blocks[number + 1 :] for node in after.takes}
        return {**{node: values[node] for node in later & values.keys()}, **given}


class Ends(Protocol):
    """The values at the two ends of one block after the other.

    Attributes:
        count: Number of batches, once they have been gone through.
    """

    count: int

    def enter(self, number: int) -> None:
        """Come to a block."""

    def leave(self) -> None:
        """Go on from a block, whose parameters will not change any more."""

    def pairs(self, generator: torch.Generator | None = None) -> Iterator[tuple[Values, Values]]:
        """Yield the pruned model's values before the block, and the dense model's after it.

        Args:
            generator: Puts the batches into random order; None for their own.
        """


class Kept:
    """Ends that are kept in memory and go forward with each block.

    Args:
        chain: The blocks.
        batches: Iterated once.
        storage: Floating-point type in which values are kept.
    """

    def __init__(self, chain: Chain, batches: Iterable[Tree], storage: torch.dtype) -> None:
        self._chain, self._storage = chain, storage
        self._started = [chain.program.start(inputs) for inputs in batches]
        self._before: list[Values] = [{} for _ in self._started]
        self._dense: list[Values] = [{} for _ in self._started]
        self._number = 0
        self.count = len(self._started)

    def enter(self, number: int) -> None:
        """See :class:`Ends`."""
        self._number = number
        self._dense = self._forward(self._chain.dense, self._dense)

    def leave(self) -> None:
        """See :class:`Ends`."""
        self._before = self._forward(self._chain.pruned, self._before)

    def pairs(self, generator: torch.Generator | None = None) -> Iterator[tuple[Values, Values]]:
        """See :class:`Ends`."""
        order = range(self.count)
        if generator is not None:
            order = torch.randperm(self.count, generator=generator).tolist()
        for i in order:
            yield {**self._started[i], **_load(self._before[i])}, _load(self._dense[i])

    def _forward(self, state: Mapping[str, Tensor], kept: list[Values]) -> list[Values]:
        return [
            self._store(self._chain.run(self._number, state, {**started, **_load(values)}))
            for started, values in zip(self._started, kept, strict=True)
        ]

    def _store(self, values: Values) -> Values:
        return {n: v.to(self._storage) if _is_float(v) else v for n, v in values.items()}


class Recomputed:
    """Ends that are computed from the inputs each time, for inputs that differ each time.

    Args:
        chain: The blocks.
        batches: Iterated in every pass.
    """

    def __init__(self, chain: Chain, batches: Iterable[Tree]) -> None:
        self._chain, self._batches = chain, batches
        self._number = 0
        self.count = 0

    def enter(self, number: int) -> None:
        """See :class:`Ends`."""
        self._number = number

    def leave(self) -> None:
        """See :class:`Ends`."""

    def pairs(self, generator: torch.Generator | None = None) -> Iterator[tuple[Values, Values]]:
        """See :class:`Ends`. The batches come in their own order."""
        chain, count = self._chain, 0
        for inputs in self._batches:
            started = chain.program.start(inputs)
            before, wanted = dict(started), dict(started)
            for number in range(self._number):
                before = {**started, **chain.run(number, chain.pruned, before)}
            for number in range(self._number + 1):
                wanted = {**started, **chain.run(number, chain.dense, wanted)}
            count += 1
            yield before, wanted
        self.count = count


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _load(values: Values) -> Values:
    """Values in the types that the operators expect."""
    return {
        node: value.to(node.meta["val"].dtype) if _is_float(value) else value
        for node, value in values.items()
    }
