"""Reading batches in other processes, in the order and with the content that one process gives."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mfac_compress.pipeline.errors import InputError, describe

_T = TypeVar("_T")
_KEY = "data.workers"


def check_workers(workers: int) -> None:
    """Check that this system can give processes what is loaded here.

    Raises:
        InputError: If not.
    """
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"{_KEY} must be 0 on this system, whose processes cannot be forked. Got {workers}."
        )


def read_in_order(
    read: Callable[[Sequence[int]], _T],
    batches: Sequence[Sequence[int]],
    workers: int,
    *,
    fixed: bool,
) -> Iterator[_T]:
    """Read batches, each in one of several processes.

    A few batches are read here: starting processes would take longer.

    Args:
        read: Gives a batch of samples at some positions.
        batches: The positions.
        workers: Number of the processes.
        fixed: Whether samples are the same at every reading. Those that draw random numbers get
            seeds from PyTorch's generator; for others it is left alone, so that a run does the same
            with any number of processes.

    Raises:
        InputError: If a sample cannot be read, or a process ends.
    """
    if len(batches) <= workers or not workers:
        yield from map(read, batches)
        return
    seed = 0 if fixed else int(torch.randint(2**62, ()))
    loader = DataLoader(
        _Batches(read, batches),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        multiprocessing_context="fork",
        generator=torch.Generator().manual_seed(seed),
    )
    try:
        for result in loader:
            if isinstance(result, Exception):
                raise result
            yield result
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise InputError(
            f"{_KEY}: the processes that read samples must not end. One did, perhaps for want of "
            f"memory (also of /dev/shm). Lower it from {workers}; 0 reads in this process."
        ) from error


class _Batches(Dataset[_T | Exception]):
    """Batches by number. Errors are returned: what is raised comes back with a traceback in it."""

    def __init__(
        self, read: Callable[[Sequence[int]], _T], batches: Sequence[Sequence[int]]
    ) -> None:
        self._read, self._batches = read, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> _T | Exception:
        try:
            return self._read(self._batches[number])
        except InputError as error:
            return InputError(str(error))
        except Exception as error:
            return ValueError(describe(error))


def _as_it_is(batch: _T) -> _T:
    return batch


def _leave_signals(_: int) -> None:
    """Take no part in how this process is interrupted: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
