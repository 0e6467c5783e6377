"""The processes of one run, and what goes between them.

For a single process every exchange is the identity, so stages are written once. All processes
make the same calls in the same order; what only one may do (write, print, judge) rank 0 does, in
:meth:`Ranks.on_rank_zero`.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mfac_compress.pipeline.errors import CompressError, RankError, StageError

T = TypeVar("T")
State = dict[str, Tensor]

RANK_TIMEOUT = 1800.0
"""Seconds that processes wait for one that does not come; PyTorch's own default."""
# While rank zero exports and measures the others wait. One that dies ends the wait at once.
_ALONE = timedelta(days=7)


@dataclass(frozen=True)
class _Groups:
    """The groups of processes that exchanges go through, each with its timeout."""

    seconds: float
    exchange: dist.ProcessGroup
    """For the exchanges themselves."""
    arrival: dist.ProcessGroup
    """In which all wait for each other before an exchange. Its barrier alone tells who is missing,
    and does so in rank zero, for which the others therefore wait twice as long."""
    alone: dist.ProcessGroup
    """The same after rank zero has worked alone, which takes as long as it takes."""

    @classmethod
    def open(cls, seconds: float) -> "_Groups":
        limit = timedelta(seconds=seconds)
        return cls(
            seconds,
            dist.new_group(timeout=limit),
            dist.new_group(backend="gloo", timeout=2 * limit),
            dist.new_group(backend="gloo", timeout=_ALONE),
        )


@dataclass
class Ranks:
    """The processes of one run, as this one of them sees it.

    Args:
        rank: Of this process.
        size: Number of processes.
        local_rank: Of this process among those on the same machine.
        local_size: Number of processes on the same machine.

    Attributes:
        agreed: Whether all processes know how the run ends, and so end it alike.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    agreed: bool = field(default=False, init=False)
    _groups: _Groups | None = field(default=None, init=False, repr=False)

    def wait_at_most(self, seconds: float) -> None:
        """Say how long to wait for a process that does not come. All processes say the same.

        Args:
            seconds: A process that hangs ends the run after them; twice as many for rank zero.
        """
        if self.size == 1:
            return
        if self._groups is not None:
            self._arrive(self._groups.arrival)
        if self._groups is None or self._groups.seconds != seconds:
            self._groups = _Groups.open(seconds)

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process' part of ``count`` rows. The parts of all, in order, are the whole."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextmanager
    def raise_on_every_rank(self, *, alone: bool = False) -> Iterator[None]:
        """Let an error of any process be raised by all; for work in which they do not talk.

        Args:
            alone: Whether it is rank zero alone that works, for as long as it takes.

        Raises:
            RankError: If another process has failed.
            StageError: If another process does not come, or cannot be reached.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        described: list[Any] = [None] * self.size
        with self._exchange(error, alone=alone) as group:
            dist.all_gather_object(described, error and _described(error), group=group)
        failures = [(rank, *failure) for rank, failure in enumerate(described) if failure]
        if not failures:
            return
        self.agreed = True
        if self.is_rank_zero and error is not None:
            raise error
        raise RankError(*failures[0], reported=not self.is_rank_zero) from error

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Let the first process do something; all get its result, or its error.

        Args:
            work: Its result is pickled. No other method of this object may be called in it.
        """
        result: list[Any] = [None]
        with self.raise_on_every_rank(alone=True):
            if self.is_rank_zero:
                result = [work()]
        if self.size > 1:
            with self._exchange() as group:
                dist.broadcast_object_list(result, group=group)
        return result[0]

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of everyone's ``x``, the same to the last bit for all. May overwrite ``x``."""
        if self.size > 1:
            with self._exchange() as group:
                dist.all_reduce(x, group=group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's ``x`` in order, along the first dimension, in which they may differ."""
        if self.size == 1:
            return x
        counts = self._counts(x)
        sent = x.new_zeros(max(counts), *x.shape[1:])
        sent[: len(x)] = x
        received = [torch.empty_like(sent) for _ in counts]
        with self._exchange() as group:
            dist.all_gather(received, sent, group=group)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    def all_to_all(self, rows: Tensor, columns: Sequence[slice]) -> Tensor:
        """Send each process its columns of these rows.

        Args:
            rows: Shape ``[k, d]``; k may differ between processes.
            columns: Those of each process.

        Returns:
            Everyone's rows, this process' columns. Shape ``[sum of k, columns]``.
        """
        if self.size == 1:
            return rows
        counts = self._counts(rows)
        width = columns[self.rank].stop - columns[self.rank].start
        sent = torch.cat([rows[:, part].reshape(-1) for part in columns])
        received = rows.new_empty(sum(counts) * width)
        with self._exchange() as group:
            dist.all_to_all_single(
                received,
                sent,
                [count * width for count in counts],
                [len(rows) * (part.stop - part.start) for part in columns],
                group=group,
            )
        return received.view(-1, width)

    def gather(self, own: State, take: Callable[[int, State], None]) -> None:
        """Hand everyone's tensors to the first process, so that it never holds those of all.

        Args:
            own: This process' tensors.
            take: Called in the first process with each rank and its tensors.
        """
        for rank in range(self.size):
            tensors = self._move(own, rank, 0)
            self.on_rank_zero(lambda rank=rank, tensors=tensors: take(rank, tensors))

    def scatter(self, give: Callable[[int], State]) -> State:
        """The reverse of :meth:`gather`.

        Args:
            give: Called in the first process with each rank. Its tensors are on the run's device.

        Returns:
            This process' tensors.
        """
        own: State = {}
        for rank in reversed(range(self.size)):
            with self.raise_on_every_rank():
                tensors = give(rank) if self.is_rank_zero else {}
            own |= self._move(tensors, 0, rank)
        return own

    def _move(self, tensors: State, source: int, to: int) -> State:
        """Tensors of one process, in another; nothing in those that they do not concern."""
        if source == to:
            return tensors if self.rank == to else {}
        forms = [{name: (x.shape, x.dtype, x.device.type) for name, x in tensors.items()}]
        moved = {}
        with self._exchange() as group:
            dist.broadcast_object_list(forms, src=source, group=group)
            for name, (shape, dtype, device) in forms[0].items():
                if self.rank == source:
                    dist.send(tensors[name].contiguous(), to, group=group)
                elif self.rank == to:
                    moved[name] = torch.empty(shape, dtype=dtype, device=device)
                    dist.recv(moved[name], source, group=group)
        return moved

    def _counts(self, x: Tensor) -> list[int]:
        """Everyone's number of rows."""
        own = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange() as group:
            dist.all_gather(counts, own, group=group)
        return [int(count) for count in counts]

    @contextmanager
    def _exchange(
        self, cause: Exception | None = None, *, alone: bool = False
    ) -> Iterator[dist.ProcessGroup]:
        """Wait until all processes have come; gives the group for what they exchange.

        Args:
            cause: An own error, which came first and goes before that of a broken connection.
            alone: Whether the others wait for rank zero for as long as it takes.

        Raises:
            StageError: If a process does not come, or cannot be reached.
        """
        assert self._groups is not None  # open_ranks has opened them
        try:
            self._arrive(self._groups.alone if alone else self._groups.arrival)
            start = time.monotonic()
            try:
                yield self._groups.exchange
            except RuntimeError as error:
                if time.monotonic() - start >= self._groups.seconds:
                    self._arrive(self._groups.arrival)  # says which one stopped in the midst of it
                raise _lost("another rank", f" ({error})") from error
        except StageError as error:
            if cause is not None:
                raise cause from error
            raise

    def _arrive(self, group: dist.ProcessGroup) -> None:
        """Wait for all processes.

        Raises:
            StageError: If one does not come in time, or cannot be reached. It says which.
        """
        assert self._groups is not None
        seconds, start = self._groups.seconds, time.monotonic()
        try:
            dist.monitored_barrier(group, timedelta(seconds=seconds), wait_all_ranks=True)
        except RuntimeError as error:
            # Rank zero is told who is missing; the others have waited for rank zero.
            told = re.search(r"Ranks ([\d, ]*\d)", str(error)) if self.is_rank_zero else None
            who = f"rank {told.group(1) if told else 0}"
            if time.monotonic() - start < seconds:
                raise _lost(who) from error
            raise StageError(
                "processes",
                f"all must go on to the end. Got nothing from {who} within {seconds:g} s: it "
                "hangs, or takes longer. See what it is doing, or raise run.rank_timeout.",
            ) from error


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """The processes that ``torchrun`` has started; this one alone where it has not.

    When one ends with an error, torchrun ends the others. So those that have agreed on how to end
    wait for each other first, until each has said what it has to say.
    """
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        yield Ranks()
        return
    # Imported while there is a process group it would keep it, and with it threads that abort
    # the process when they outlive the interpreter.
    import torch._dynamo

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    # Tensors on the CPU go by gloo also where there are GPUs; waiting there costs no cycles.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=RANK_TIMEOUT))
    try:
        ranks.wait_at_most(RANK_TIMEOUT)
        yield ranks
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is said
        if ranks.agreed:
            with suppress(StageError):
                ranks.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


def _lost(who: str, detail: str = "") -> StageError:
    return StageError(
        "processes",
        f"all must go on to the end. The connection to {who} was lost, which has ended or cannot "
        f"be reached: its own message says why. Start again.{detail}",
    )


def _described(error: Exception) -> tuple[str, int]:
    """Message and exit code, for those who cannot unpickle the error."""
    if isinstance(error, CompressError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error}", StageError.exit_code
