"""The processes of one run, and what goes between them.

For a single process every exchange is the identity, so stages are written once. All processes
make the same calls in the same order; what only one may do (write, print, judge) rank 0 does, in
:meth:`Ranks.on_rank_zero`.
"""

import os
import signal
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

# The others wait while the first one exports and measures. A process that dies ends the wait.
_TIMEOUT = timedelta(days=7)


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

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process' part of ``count`` rows. The parts of all, in order, are the whole."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextmanager
    def raise_on_every_rank(self) -> Iterator[None]:
        """Let an error of any process be raised by all; for work in which they do not talk.

        Raises:
            RankError: If another process has failed.
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
        with _connected(error):
            dist.all_gather_object(described, error and _described(error))
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
        with self.raise_on_every_rank():
            if self.is_rank_zero:
                result = [work()]
        if self.size > 1:
            with _connected():
                dist.broadcast_object_list(result)
        return result[0]

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of everyone's ``x``, the same to the last bit for all. May overwrite ``x``."""
        if self.size > 1:
            with _connected():
                dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's ``x`` in order, along the first dimension, in which they may differ."""
        if self.size == 1:
            return x
        counts = self._counts(x)
        sent = x.new_zeros(max(counts), *x.shape[1:])
        sent[: len(x)] = x
        received = [torch.empty_like(sent) for _ in counts]
        with _connected():
            dist.all_gather(received, sent)
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
        with _connected():
            dist.all_to_all_single(
                received,
                sent,
                [count * width for count in counts],
                [len(rows) * (part.stop - part.start) for part in columns],
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
        with _connected():
            dist.broadcast_object_list(forms, src=source)
            for name, (shape, dtype, device) in forms[0].items():
                if self.rank == source:
                    dist.send(tensors[name].contiguous(), to)
                elif self.rank == to:
                    moved[name] = torch.empty(shape, dtype=dtype, device=device)
                    dist.recv(moved[name], source)
        return moved

    def _counts(self, x: Tensor) -> list[int]:
        """Everyone's number of rows."""
        own = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(own) for _ in range(self.size)]
        with _connected():
            dist.all_gather(counts, own)
        return [int(count) for count in counts]


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
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield ranks
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is said
        if ranks.agreed:
            with suppress(StageError):
                ranks.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


@contextmanager
def _connected(cause: Exception | None = None) -> Iterator[None]:
    """Name what a broken connection means; an own error, which came first, goes before it."""
    try:
        yield
    except RuntimeError as error:
        if cause is not None:
            raise cause from error
        raise StageError(
            "processes",
            "all must go on to the end. The connection to another was lost, which has ended or "
            f"cannot be reached: its own message says why. Start again. ({error})",
        ) from error


def _described(error: Exception) -> tuple[str, int]:
    """Message and exit code, for those who cannot unpickle the error."""
    if isinstance(error, CompressError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error}", StageError.exit_code
