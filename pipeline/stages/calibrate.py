"""The empirical Fisher's sums, from gradients of the loss on calibration samples."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mfac_compress.mfac.batch import Batch
from mfac_compress.mfac.fisher import Fisher, empty_fisher
from mfac_compress.mfac.gradients import (
    GradientSource,
    Method,
    NonFiniteGradientError,
    batches_at_once,
    fastest_method,
)
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.fisher_shape import FisherShape
from mfac_compress.pipeline.inputs.memory import MemoryPlan
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.run.artefact import Artefact
from mfac_compress.pipeline.run.stage import Job

# Each exchange between processes takes a millisecond or two, so short rows travel together.
_SENT_BYTES = 1 << 26


@dataclass(frozen=True)
class Calibrated:
    """What the stage says of its Fisher.

    Args:
        num_gradients: m.
        method: How the gradients were computed; the steps after the first do as this one did.
        samples_per_second: Of this process.
    """

    num_gradients: int
    method: Method
    samples_per_second: float


def check(
    ranks: Ranks,
    *,
    calibration: CalibrationData,
    shapes: Iterable[FisherShape],
    memory: MemoryPlan,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that there are samples for m gradients, work for all processes, and memory.

    Args:
        shapes: Of the Fishers of all steps.

    Raises:
        InputError: If not.
    """
    with ranks.raise_on_every_rank():
        for shape in {shape.num_gradients: shape for shape in shapes}.values():
            calibration.draws.gradients(0, shape.num_gradients)
            if shape.num_gradients < ranks.size:
                raise InputError(
                    f"{where('calibrate.num_gradients')}: must be at least 1 for each of "
                    f"{ranks.size} processes. Got {shape.num_gradients}. Use fewer processes."
                )
            shape.shards(ranks.size)
        if not memory.fits:
            raise InputError(memory.advice)


def calibrate(
    job: Job,
    *,
    model: Model,
    calibration: CalibrationData,
    shape: FisherShape,
    gradients: Literal["loop", "vmap", "auto"],
    storage: Path | None,
) -> Calibrated:
    """Compute the Fisher of the dense model and save it to the job's folder.

    Each process' columns make one file, so that none ever holds them all.

    Args:
        job: Where, with whom.
        model: The dense model.
        calibration: Samples, draws and the loss.
        shape: Of the Fisher.
        gradients: How they are computed; ``auto`` for the faster way.
        storage: Folder for gradients that the memory does not hold; None for in memory.
    """
    source = FisherSource(calibration, shape, storage, job.ranks, job.progress)
    fisher, facts = source.compute(model.module, step=0, gradients=gradients)
    for number, part in enumerate(fisher.parts()):
        job.ranks.gather(
            part,
            lambda rank, own, number=number: save_file(own, job.folder / _file(rank, number)),
        )
    return facts


@dataclass(frozen=True)
class FisherSource:
    """Makes Fishers of a model on its way, each process the sums on its own columns.

    Args:
        calibration: Samples, draws and the loss.
        shape: Of the Fisher.
        storage: Folder for gradients that the memory does not hold; None for in memory.
        ranks: The processes that share the work.
        progress: Shows it.
    """

    calibration: CalibrationData
    shape: FisherShape
    storage: Path | None
    ranks: Ranks
    progress: Progress

    @property
    def own_gradients(self) -> int:
        """How many of the m gradients of a step this process computes."""
        return len(range(self.shape.num_gradients)[self.ranks.shard(self.shape.num_gradients)])

    @property
    def columns(self) -> slice:
        """The columns of the flat vector that this process keeps."""
        return self.shape.shards(self.ranks.size)[self.ranks.rank].columns

    def of_step(self, step: int, module: nn.Module, calibrated: Artefact) -> Fisher:
        """The Fisher that a pruning step starts from: the first one has been made.

        Args:
            step: Number of the step.
            module: The model on its way.
            calibrated: The dense model's Fisher, as :func:`calibrate` left it.
        """
        if step == 0:
            return self.load(calibrated.folder)
        return self.compute(module, step, calibrated.facts.method)[0]

    def load(self, folder: Path) -> Fisher:
        """Read back what :func:`calibrate` saved, this process' columns."""
        fisher, device = self._empty(), str(self.calibration.device)
        for number in range(self.ranks.on_rank_zero(lambda: len(list(folder.glob(_file(0, "*")))))):
            part = self.ranks.scatter(
                lambda rank, number=number: load_file(folder / _file(rank, number), device=device)
            )
            fisher.add_part(part)
        return fisher

    def compute(
        self, module: nn.Module, step: int, gradients: Literal["loop", "vmap", "auto"]
    ) -> tuple[Fisher, Calibrated]:
        """Draw samples for this step and gather exactly m gradients of the model as it is.

        Of N processes each computes its N-th part of the gradients, and keeps its columns of all.

        Args:
            module: In the state that the gradients are wanted at.
            step: Number of the pruning step, which the draw depends on.
            gradients: How to compute them.

        Returns:
            The Fisher's sums on this process' columns, and how they came about.

        Raises:
            InputError: If the calibration split is too small, a sample does not fit the loss, or a
                gradient is not finite.
        """
        draw = self.calibration.draws.gradients(step, self.shape.num_gradients)
        own = self.ranks.shard(len(draw))
        set_training(module, False)
        fisher = self._empty()
        source = GradientSource(module, self.calibration.loss, self.shape.layout)
        batches = self.calibration.gradient_batches(module, draw, step, own)
        method, batches = self._choose_method(source, batches, gradients, draw[own])
        start = time.perf_counter()
        label = "calibrate" if not step else f"calibrate, step {step + 1}"
        batches = self.progress.track(batches, label, self.own_gradients)
        for own_columns in self._exchange_rows(source.rows(batches, method), draw[own]):
            fisher.add(own_columns)
        seconds = time.perf_counter() - start
        assert fisher.num_gradients == self.shape.num_gradients
        rate = round(draw.numel() / seconds, 1)
        return fisher, Calibrated(fisher.num_gradients, method, rate)

    def _empty(self) -> Fisher:
        """A Fisher of this process' columns.

        Raises:
            InputError: If there is no room on disk for gradients that the memory does not hold.
        """
        shape = self.shape
        if self.storage is not None:
            self.storage.mkdir(parents=True, exist_ok=True)
        try:
            return empty_fisher(
                shape.partition,
                shape.num_gradients,
                dtype=getattr(torch, shape.window_dtype),
                device=self.calibration.device,
                folder=self.storage,
                shard=shape.shards(self.ranks.size)[self.ranks.rank],
                group=self.ranks,
            )
        except ValueError as error:
            raise InputError(f"run.memory_budget is exceeded, and {error}") from error

    def _exchange_rows(self, rows: Iterator[Tensor], own_draw: Tensor) -> Iterator[Tensor]:
        """Everyone's rows, this process' columns, until nobody has any more."""
        ranks = self.ranks
        columns = [shard.columns for shard in self.shape.shards(ranks.size)]
        none = torch.empty(0, self.shape.layout.size, device=self.calibration.device)
        row_bytes = none.shape[1] * none.itemsize
        at_once = max(1, _SENT_BYTES // row_bytes) if ranks.size > 1 else 1
        while True:
            with ranks.raise_on_every_rank(), _naming_bad_samples(own_draw):
                parts = list(_taken(rows, at_once))
            own_rows = parts[0] if len(parts) == 1 else torch.cat([none, *parts])
            own_columns = ranks.all_to_all(own_rows, columns)
            if not len(own_columns):
                return
            yield own_columns

    def _choose_method(
        self,
        source: GradientSource,
        batches: Iterator[Batch],
        gradients: Literal["loop", "vmap", "auto"],
        own_draw: Tensor,
    ) -> tuple[Method, Iterator[Batch]]:
        """The method asked for, or the faster one on the first batches, which are given back.

        The first process measures for all.
        """
        if gradients != "auto":
            return gradients, batches
        count = batches_at_once(self.calibration.draws.samples_per_gradient)
        with self.ranks.raise_on_every_rank():
            first = list(itertools.islice(batches, count))

        def measured() -> Method:
            with _naming_bad_samples(own_draw):
                return fastest_method(source, first)

        return self.ranks.on_rank_zero(measured), itertools.chain(first, batches)


def _taken(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The next parts that make up ``count`` rows; vmap gives many rows in one part."""
    taken = 0
    while taken < count and (part := next(parts, None)) is not None:
        taken += len(part)
        yield part


def _file(rank: int, part: int | str) -> str:
    return f"fisher-{rank}-{part}.safetensors"


@contextmanager
def _naming_bad_samples(draw: Tensor) -> Iterator[None]:
    """Name the samples of a gradient that is not finite.

    Args:
        draw: Samples of each gradient of this process. Shape ``[k, samples]``.
    """
    try:
        yield
    except NonFiniteGradientError as error:
        raise InputError(
            f"Gradients must be finite. Got NaN or infinity in {error.tensor} for the calibration "
            f"samples {draw[error.index].tolist()} (loss {error.loss:g}). Look at these samples in "
            "data.splits.calibration, and at task.loss."
        ) from error
