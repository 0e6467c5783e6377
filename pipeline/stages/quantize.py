"""The files in 8 bits: the pruned model's, and the dense one's that it has to beat.

Ranges of activations are those of calibration samples, and which layers stay in float is decided on
the held-out ones: validation samples choose nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from mfac_compress.export import open_session, predict
from mfac_compress.export.quantise import ActivationRanges, StaticQuantiser
from mfac_compress.export.quantise_dynamic import DynamicQuantiser
from mfac_compress.export.quantised_weights import signed_weights
from mfac_compress.export.quantiser_parts import Steps, weights_in_8_bits
from mfac_compress.mfac.batch import Tree, map_tensors, named_tensors, size
from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.file_names import DENSE, IN_INT8, ONNX_FILES, RANGES, SPARSE
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import QuantizeSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.stages.divergence import Divergence, is_nearer, reported
from mfac_compress.pipeline.stages.file_inputs import drawn_feeds, held_out_feeds
from mfac_compress.pipeline.stages.prune import no_holdout
from mfac_compress.pipeline.stages.reconstruct import check_samples
from mfac_compress.pipeline.stages.rounding import LayerRounding, Rounding, round_layers

_STAGE = "quantize"
_JUDGED = 512
"""Held-out samples on which a file in 8 bits is compared: one for each layer may have to be."""
_WHOLE, _BY_OUTPUT = 10, 13
"""Opsets that have QuantizeLinear with one scale for a tensor, and with one for each output."""


@dataclass(frozen=True)
class LayerPrecision:
    """A layer of the pruned model that could be in 8 bits, and whether it is."""

    weight: str
    """Name of its weight in the float file."""
    operator: str
    """ONNX operator."""
    size: int
    """Number of its weights."""
    int8: bool
    """Whether the file in 8 bits has them in 8 bits. Read from the file."""
    cost: float | None
    """Divergence of the outputs from those of `model.onnx` with this layer alone in 8 bits. null:
    not measured, since all layers together stay below `quantize.max_divergence`."""


@dataclass(frozen=True)
class Quantised:
    """How the files in 8 bits came about."""

    mode: Literal["static", "dynamic"]
    """Whether ranges of activations are in the file, or found in each call."""
    divergence: float
    """Of the file's outputs from those of `model.onnx`, on held-out calibration samples."""
    all_layers: float
    """The same with every layer in 8 bits."""
    max_divergence: float | None
    """Most that the recipe allows. null: anything."""
    layers: tuple[LayerPrecision, ...]
    """All that could be in 8 bits, in the graph's order."""
    rounding: Rounding | None = None
    """null: weights are rounded to nearest."""
    trained: bool = False
    """Whether the ranges of activations are those with which quantization-aware epochs have
    trained, rather than measured on the pruned model."""

    @property
    def share(self) -> float:
        """Weights in 8 bits, as a share of those of all layers."""
        return sum(one.size for one in self.layers if one.int8) / sum(
            one.size for one in self.layers
        )

    @property
    def solved(self) -> int:
        """Layers in 8 bits with the weights of the solver of `quantize.weight_update`."""
        if self.rounding is None or not self.rounding.kept:
            return 0
        solved = {one.weight for one in self.rounding.layers if one.solved}
        return sum(one.int8 and one.weight in solved for one in self.layers)


def check(
    ranks: Ranks,
    *,
    section: QuantizeSection,
    calibration: CalibrationData,
    opset: int | None,
    where: Callable[..., str],
    **_: Any,
) -> None:
    """Check that there are samples, ONNX Runtime's quantiser, and operators to write in the file.

    Raises:
        InputError: If not.
    """
    with ranks.raise_on_every_rank():
        if find_spec("onnxruntime.quantization") is None:
            raise InputError(
                f"{where('quantize.mode')}: needs onnxruntime.quantization, which this build of "
                "ONNX Runtime lacks. Install the package onnxruntime from PyPI, or set it to off."
            )
        if opset is not None and section.mode == "static":
            _check_opset(opset, section, where)
        if not len(calibration.draws.holdout):
            raise no_holdout(calibration, where)
        check_samples(calibration, section.samples, where("quantize.samples"))


def _check_opset(opset: int, section: QuantizeSection, where: Callable[..., str]) -> None:
    """Check that an ONNX file's operators can be quantised, of which it keeps the version."""
    needed, what = (_BY_OUTPUT, "by outputs ") if section.per_channel else (_WHOLE, "")
    if opset < needed:
        other = "quantize.per_channel: false, " if opset >= _WHOLE else ""
        raise InputError(
            f"{where('quantize.mode')}: static {what}needs opset {needed} or later. MODEL is an "
            f"ONNX file of opset {opset}, and stays so. Bring it to {needed} with "
            f"onnx.version_converter, or set {other}quantize.mode: dynamic or off."
        )


def quantize(job: Job, *, section: QuantizeSection, calibration: CalibrationData) -> Quantised:
    """Write the dense and the pruned model in 8 bits to the job's folder.

    The dense one has every layer in 8 bits, as people would write it.

    Args:
        job: Where, after the stage ``export``; also after ``trained``, where that has the ranges
            of activations with which the pruned model was trained.
        section: The recipe's ``quantize``.
        calibration: Has the samples.
    Raises:
        StageError: If no file in 8 bits is near enough to the float one.
    """
    exported, trained = job.before["export"].folder, job.before.get("trained")
    with TemporaryDirectory(prefix=".work-", dir=job.folder) as work:
        found = quantise_file(
            exported / ONNX_FILES[SPARSE],
            job.folder / ONNX_FILES[IN_INT8[SPARSE]],
            section=section,
            calibration=calibration,
            scratch=Path(work),
            step=job.progress.step,
            measured=trained and load_file(trained.folder / RANGES),
        )
        dense = quantiser_of(exported / ONNX_FILES[DENSE], section, calibration, Path(work))
        dense.write(job.folder / ONNX_FILES[IN_INT8[DENSE]], metadata=_metadata(section))
    return found


def quantise_file(
    path: Path,
    output: Path,
    *,
    section: QuantizeSection,
    calibration: CalibrationData,
    scratch: Path,
    step: Callable[[str, int, int], None],
    measured: ActivationRanges | None = None,
) -> Quantised:
    """Write a float file in 8 bits, and say what is in it.

    Args:
        path: The float file.
        output: File to write.
        section: The recipe's ``quantize``.
        calibration: Has the samples.
        scratch: Folder for temporary files.
        step: Shows what is at work, how much of it is done, and how much there is.
        measured: Ranges of activations with which the model was trained; None to measure them.
    Raises:
        StageError: If no file in 8 bits is near enough to the float one, or the ranges are not
            those of the file.
    """
    return _Search(path, section, calibration, scratch, step, measured).run(output)


class _Search:
    """Looks for the file with as many layers in 8 bits as the recipe's tolerance allows.

    Args:
        path: The pruned model in float.
        section: The recipe's ``quantize``.
        calibration: Has the samples.
        work: Folder for files on trial.
        step: Shows the progress.
        measured: Ranges of activations with which the model was trained; None to measure them.
    """

    def __init__(
        self,
        path: Path,
        section: QuantizeSection,
        calibration: CalibrationData,
        work: Path,
        step: Callable[[str, int, int], None],
        measured: ActivationRanges | None,
    ) -> None:
        self._path, self._section, self._calibration = path, section, calibration
        self._work, self._step = work, step
        self._trained = measured is not None
        self._quantiser = quantiser_of(path, section, calibration, work, measured)
        self._steps: Steps = {}
        self._divergence = Divergence(FileModule(path), calibration, most=_JUDGED)

    def run(self, output: Path) -> Quantised:
        """Write the file, and say what is in it."""
        layers, most = self._quantiser.layers, self._section.max_divergence
        if not layers:
            raise StageError(
                _STAGE,
                "quantize.mode must be off for a model without a convolution or matrix product "
                "that has a constant weight.",
            )
        default = "none" if self._trained else "obs"
        update = self._section.weight_update or default
        rounded = self._round(output) if update == "obs" else None
        everything = reached = self._write(output)
        in_float: Sequence[str] = ()
        costs: dict[str, float] = {}
        if most is not None and not everything <= most:
            costs = self._costs()
            nodes = sorted(costs, key=_highest_first(costs))
            in_float, reached = self._leave_in_float(output, nodes, most, everything)
        rounding = None
        if rounded is not None:
            rounding, reached = self._nearer(output, in_float, reached, rounded)
        in_file = weights_in_8_bits(output)
        found = Quantised(
            mode=self._section.mode,
            divergence=reached,
            all_layers=everything,
            max_divergence=most,
            layers=tuple(
                LayerPrecision(
                    one.weight,
                    one.operator,
                    one.size,
                    one.weight in in_file,
                    costs.get(one.node),
                )
                for one in layers
            ),
            rounding=rounding,
            trained=self._trained,
        )
        if not found.share:
            raise StageError(
                _STAGE,
                "a file in 8 bits must have a layer in 8 bits. ONNX Runtime's quantiser left all "
                f"{len(layers)} in float. Set quantize.mode to off.",
            )
        return found

    def _round(self, output: Path) -> tuple[LayerRounding, ...]:
        """From here on, weights are rounded by the solver."""
        self._quantiser.write(output)  # has the scales, and the nearest steps
        path, calibration = self._path, self._calibration
        self._steps, layers = round_layers(
            self._quantiser.model,
            signed_weights(output),
            lambda: drawn_feeds(path, calibration, _STAGE, self._section.samples),
            lambda: held_out_feeds(path, calibration, _JUDGED),
            calibration.draws.generator_for(f"{_STAGE}, positions"),
            self._work,
            self._step,
        )
        return layers

    def _nearer(
        self,
        output: Path,
        in_float: Sequence[str],
        solved: float,
        layers: tuple[LayerRounding, ...],
    ) -> tuple[Rounding, float]:
        """Leave the file with the solver's steps, or with the nearest ones where that is nearer.

        Returns how weights are rounded, and the file's divergence.
        """
        solved_steps, self._steps = self._steps, {}
        nearest = self._write(output, in_float)
        kept = is_nearer(solved, nearest)
        if kept:
            self._steps = solved_steps
            self._write(output, in_float)
        rounding = Rounding(reported(nearest), reported(solved), kept, layers)
        return rounding, solved if kept else nearest

    def _costs(self) -> dict[str, float]:
        """What each layer costs by itself, by its node."""
        costs, trial = {}, self._work / "one.onnx"
        for done, layer in enumerate(self._quantiser.layers, 1):
            self._step(f"cost of {layer.weight}", done, len(self._quantiser.layers))
            self._quantiser.write_only(trial, layer.node, steps=self._steps)
            costs[layer.node] = self._divergence.of(FileModule(trial))
        return costs

    def _leave_in_float(
        self, output: Path, nodes: Sequence[str], most: float, everything: float
    ) -> tuple[Sequence[str], float]:
        """Leave the fewest of the first nodes in float that reach the tolerance, by bisection.

        Returns them, and the divergence that is reached, at most ``most``; with none in float it is
        ``everything``.
        """
        low, high, divergence = 0, len(nodes), everything  # too few, enough
        while high - low > 1:
            count = (low + high) // 2
            divergence = self._write(output, nodes[:count])
            low, high = (low, count) if divergence <= most else (count, high)
        if high == len(nodes):
            raise StageError(
                _STAGE,
                f"quantize.max_divergence must allow at least one layer in 8 bits. Got {most:g}, "
                f"and with only {nodes[-1]} in 8 bits the outputs are {divergence:.3g} away from "
                "those in float. Raise it, or set quantize.mode to off.",
            )
        return nodes[:high], self._write(output, nodes[:high])

    def _write(self, output: Path, in_float: Sequence[str] = ()) -> float:
        """Write the file, and return how far its outputs are from those in float."""
        metadata = _metadata(self._section)
        self._quantiser.write(output, in_float=in_float, steps=self._steps, metadata=metadata)
        return self._divergence.of(FileModule(output))


def _highest_first(costs: dict[str, float]) -> Callable[[str], float]:
    """The order of layers to leave in float; NaN, of outputs that are not finite, costs most."""
    return lambda node: -math.inf if math.isnan(costs[node]) else -costs[node]


def quantiser_of(
    path: Path,
    section: QuantizeSection,
    calibration: CalibrationData,
    work: Path,
    measured: ActivationRanges | None = None,
) -> StaticQuantiser | DynamicQuantiser:
    """The quantiser of a float file, as the recipe says.

    Args:
        path: The file.
        section: The recipe's ``quantize``.
        calibration: Has the samples on which ranges are measured.
        work: Folder for temporary files.
        measured: The ranges, where they are known already.
    Raises:
        StageError: If these are not of the file.
    """
    if section.mode == "dynamic":
        return DynamicQuantiser(
            path,
            per_channel=section.per_channel,
            reduce_range=section.reduce_range,
            scratch=work,
        )
    try:
        return StaticQuantiser(
            path,
            None if measured else drawn_feeds(path, calibration, _STAGE, section.samples),
            ranges=section.ranges,
            measured=measured,
            per_channel=section.per_channel,
            reduce_range=section.reduce_range,
            scratch=work,
        )
    except ValueError as error:
        if measured is None:
            raise
        raise StageError(
            _STAGE,
            f"the model must be the one that was trained in 8 bits. {error} Set "
            "recover.quantization_aware: 0.",
        ) from error


def _metadata(section: QuantizeSection) -> dict[str, str]:
    """What says, beside the recipe's hash, how a file was made."""
    return {"mfac_compress.quantize": section.model_dump_json()}


class FileModule(nn.Module):
    """An ONNX file as a module, which takes and returns trees of tensors.

    Args:
        path: A file that stock ONNX Runtime takes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session = open_session(path, threads=torch.get_num_threads())

    def forward(self, *args: Tree, **kwargs: Tree) -> Any:
        """Outputs on the inputs' device: a tensor, or a dict of them by their names."""
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        device = next(tensor.device for _, tensor in named_tensors(inputs))
        outputs = predict(self._session, inputs, size(inputs))

        def to_device(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        return map_tensors(to_device, outputs)
