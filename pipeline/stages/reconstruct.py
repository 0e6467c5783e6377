"""Repair of pruned layers: each is fitted to the dense model's outputs, without labels.

Least squares goes through the layers one after the other; the method `blocks` then trains all
blocks of layers, each on its own target. Either is kept only if the model's outputs come nearer to
the dense model's on held-out samples, which no fit has seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mfac_compress.mfac.layerwise import bytes_of_least_squares, fit_blocks, least_squares
from mfac_compress.mfac.numerics import PrecisionError
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.calibration import CalibrationData, DrawnInputs
from mfac_compress.pipeline.inputs.memory import MemoryBudget, readable_bytes
from mfac_compress.pipeline.inputs.model import Model
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.inputs.model_layers import ModelLayers
from mfac_compress.pipeline.quoting import listed
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Augment, BlocksSection, ReconstructSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.divergence import Divergence, is_nearer, reported
from mfac_compress.pipeline.stages.prune import no_holdout

Method = Literal["least_squares", "blocks"]

_BATCH = 100
# Divergence below which a short training adds more noise than it takes away, so that it would be
# undone. Kullback-Leibler, on ResNet-20: each of twelve at 0.06 and less was, and none above 0.1.
# Relative squared error, on an autoencoder: each of four below 0.008, none of five from 0.012 on.
_NEAR_OF_CLASSES, _NEAR_OF_VALUES = 0.08, 0.01
_TRIED = 2  # samples


@dataclass(frozen=True)
class LeastSquares:
    """How layers are solved.

    Args:
        samples: Number of calibration samples.
        positions: Random positions of each sample; None for all.
        ridge: Pull towards the present weights.
    """

    samples: int
    positions: int | None
    ridge: float

    @classmethod
    def of(cls, section: ReconstructSection) -> "LeastSquares":
        """A recipe's choices."""
        positions = None if section.positions == "all" else section.positions
        return cls(section.samples, positions, section.ridge)


@dataclass(frozen=True)
class Repair:
    """One repair of all pruned layers."""

    method: Method
    """`least_squares` of each layer in turn, or training of `blocks` of layers."""
    divergence: tuple[float | None, float | None]
    """From the dense model's outputs on held-out samples, before and after it. null: outputs were
    not finite."""
    kept: bool
    """Whether it stays, as it does where that has become less."""


@dataclass(frozen=True)
class Reconstructed:
    """What the stage says of its repairs."""

    repairs: tuple[Repair, ...]
    """In their order."""
    left_out: dict[str, str]
    """Pruned weights that no repair reaches, by name, and why."""


def check(
    ranks: Ranks,
    *,
    layers: ModelLayers,
    calibration: CalibrationData,
    solve: LeastSquares,
    blocks: BlocksSection | None,
    pruned: Sequence[str],
    samples_key: Literal["samples", "samples_between"],
    budget: MemoryBudget,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that there are samples, layers to repair, and memory.

    Args:
        ranks: The processes.
        layers: The model's layers.
        calibration: Has the samples.
        solve: How layers are solved.
        blocks: How blocks are trained; None where they are not.
        pruned: Names of the weights that are pruned.
        samples_key: The key that says for how many samples blocks are trained.
        budget: The memory that there is.
        where: Says where a key of the recipe was given.

    Raises:
        InputError: If not.
    """
    with ranks.raise_on_every_rank():
        if not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        check_samples(calibration, solve.samples, where("reconstruct.samples"))
        if blocks is not None:
            check_samples(calibration, blocks.samples, where(f"reconstruct.blocks.{samples_key}"))
            augment = ImageChanges(Augment(flip=blocks.flip))
            next(iter(calibration.drawn_inputs("check", _TRIED, _TRIED, augment)))
        if ranks.is_rank_zero:
            _check_layers(layers, pruned, where("reconstruct.method"))
            _check_memory(layers, calibration, pruned, solve.samples, budget, where)


def check_samples(calibration: CalibrationData, samples: int, where: str) -> None:
    """Check that there are as many samples that are not held out.

    Raises:
        InputError: If not. It begins with ``where``.
    """
    if samples > len(calibration.draws.pool):
        raise InputError(
            f"{where}: must not exceed the {len(calibration.draws.pool)} calibration samples left "
            f"beside calibrate.holdout. Got {samples}. Lower it, or give data.splits.calibration "
            "more samples."
        )


def _check_layers(layers: ModelLayers, pruned: Sequence[str], where: str) -> None:
    try:
        reasons = _without_layer(layers, pruned)
    except ValueError as error:
        raise InputError(
            f"{where}: must be none for a model whose layers cannot be traced. {error}"
        ) from error
    if len(reasons) == len(pruned):
        named = [f"{name} ({reason})" for name, reason in reasons.items()]
        raise InputError(
            f"{where}: must be none for a model without a layer that can be repaired. Got "
            f"{listed(named, most=3, separator='; ')}."
        )


def _check_memory(
    layers: ModelLayers,
    calibration: CalibrationData,
    pruned: Sequence[str],
    samples: int,
    budget: MemoryBudget,
    where: Callable[..., str],
) -> None:
    """Check that the values of both models on all samples fit into memory."""
    inputs = next(iter(calibration.drawn_inputs("check", _TRIED, _TRIED)))
    each, once = bytes_of_least_squares(layers.graph, layers.model.module, pruned, inputs)
    if samples * each + once <= budget.bytes:
        return
    most = (budget.bytes - once) // each
    advice = f"Lower it to {most:,}" if most > 0 else "Set reconstruct.method to none"
    raise InputError(
        f"{where('reconstruct.samples')}: least squares must hold what layers compute of all "
        f"{samples:,} samples, {readable_bytes(samples * each + once)}. Got {budget}. {advice}, or "
        "raise run.memory_budget where there is more."
    )


def _without_layer(layers: ModelLayers, pruned: Sequence[str]) -> dict[str, str]:
    """Pruned weights that are no layer of the graph, and why."""
    reasons = layers.graph.reasons
    return {name: reasons[name] for name in pruned if name in reasons}


def reconstruct(
    job: Job,
    *,
    model: Model,
    layers: ModelLayers,
    calibration: CalibrationData,
    solve: LeastSquares,
    blocks: BlocksSection | None,
    is_last: bool,
    draw: str,
) -> Reconstructed:
    """Repair the pruned model; the state goes to the job's folder.

    Args:
        job: Where, after the state before it.
        model: The dense model.
        layers: Its layers.
        calibration: Has the samples.
        solve: How layers are solved.
        blocks: How blocks are trained afterwards; None where they are not.
        is_last: Whether this follows the last pruning step. Between the steps blocks are trained
            only where the outputs are far from the dense model's.
        draw: Names the random draw of the samples.
    """
    state = State.load(job.before["state"].folder)
    repairer = _Repairer(job, model, layers, calibration, state, draw)
    repairs = [repairer.solve_layers(solve)]
    near = _NEAR_OF_CLASSES if calibration.predicts_classes else _NEAR_OF_VALUES
    if blocks is not None and (is_last or not repairer.reached <= near):  # NaN is far
        repairs.append(repairer.train_blocks(blocks))
    repairer.state().save(job.folder)
    return Reconstructed(tuple(repairs), _without_layer(layers, [*state.masks]))


class _Repairer:
    """The model on its way through the repairs.

    Args:
        job: Shows the progress.
        model: The dense model.
        layers: Its layers.
        calibration: Has the samples.
        state: The pruned model.
        draw: Names the random draw of the samples.
    """

    def __init__(
        self,
        job: Job,
        model: Model,
        layers: ModelLayers,
        calibration: CalibrationData,
        state: State,
        draw: str,
    ) -> None:
        self._job, self._graph, self._calibration, self._draw = job, layers.graph, calibration, draw
        self._dense, self._module = model.module, state.into(model.copy())
        self._masks = {name: mask.to(calibration.device) for name, mask in state.masks.items()}
        self._divergence = Divergence(self._dense, calibration)
        self.reached = self._divergence.of(self._module)
        """Divergence of the model as it is."""

    def state(self) -> State:
        """A copy of where it is."""
        return State.of(self._module, self._masks)

    def solve_layers(self, solve: LeastSquares) -> Repair:
        """Least squares, layer after layer."""
        layers = sum(name in self._masks for name in self._graph.layers)

        def fit() -> None:
            least_squares(
                self._module,
                self._dense,
                self._graph,
                self._masks,
                list(self._batches("least squares", solve.samples, _BATCH)),
                positions=solve.positions,
                ridge=solve.ridge,
                seed=self._seed("positions"),
                progress=self._shown("layer", layers),
            )

        try:
            return self._kept_if_nearer("least_squares", fit)
        except PrecisionError as error:
            raise InputError(f"reconstruct.{error}") from error

    def train_blocks(self, section: BlocksSection) -> Repair:
        """Adam on all blocks, each to its own target."""

        changes = ImageChanges(Augment(flip=section.flip))

        def fit() -> None:
            fit_blocks(
                self._module,
                self._dense,
                self._graph,
                self._masks,
                self._batches("blocks", section.samples, section.batch_size, changes),
                epochs=section.epochs,
                lr=section.lr,
                scores_axis=1 if self._calibration.predicts_classes else None,
                progress=self._shown("blocks, pass", section.epochs),
            )

        return self._kept_if_nearer("blocks", fit)

    def _kept_if_nearer(self, method: Method, fit: Callable[[], None]) -> Repair:
        before, reached = self.state(), self.reached
        set_training(self._module, False)
        fit()
        divergence = self._divergence.of(self._module)
        kept = is_nearer(divergence, reached)
        if kept:
            self.reached = divergence
        else:
            before.into(self._module)
        return Repair(method, (reported(reached), reported(divergence)), kept)

    def _batches(
        self, purpose: str, samples: int, batch_size: int, augment: ImageChanges | None = None
    ) -> DrawnInputs:
        """Inputs of some samples that are not held out."""
        draw = f"{self._draw}, {purpose}"
        return self._calibration.drawn_inputs(draw, samples, batch_size, augment)

    def _generator(self, purpose: str) -> torch.Generator:
        return self._calibration.draws.generator_for(f"{self._draw}, {purpose}")

    def _seed(self, purpose: str) -> int:
        return int(torch.randint(2**31, (), generator=self._generator(purpose)))

    def _shown(self, what: str, total: int) -> Callable[[str], None]:
        """A callback that counts what is done."""
        done = 0

        def show(name: str) -> None:
            nonlocal done
            done += 1
            self._job.progress.step(f"{what} {name}", done, total)

        return show
