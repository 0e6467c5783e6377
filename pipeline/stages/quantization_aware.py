"""Quantization-aware epochs: a training that rounds as the file in 8 bits will.

Before the first of them the model is written as it would ship then, the ranges of its activations
are measured as the stage ``quantize`` measures them, and ONNX Runtime's quantiser says which scale
each layer gets. The ranges are kept with the trained model, and ``quantize`` takes these.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mfac_compress.export.passes import TRANSPOSED
from mfac_compress.mfac.fake_quantisation import FakeQuantisation, FakeQuantisedLayer
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.file_names import ONNX_FILES, RANGES, SPARSE
from mfac_compress.pipeline.inputs.calibration import CalibrationData
from mfac_compress.pipeline.inputs.forward import random_state_kept, run_model
from mfac_compress.pipeline.inputs.model import Model, OnnxForm
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import QuantizeSection
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages.export import shrunk
from mfac_compress.pipeline.stages.quantize import quantiser_of

_LEVELS, _REDUCED_LEVELS = 127, 64
_TRIED = 32
"""Samples with which it is tried, before any work, whether a model can be rounded."""


@dataclass(frozen=True)
class Rounding:
    """How a model rounds in 8 bits.

    Args:
        ranges: Lowest and highest value of the activations of its float file, by name. ``[2]``.
        layers: Its layers, in the order in which they are called.
        levels: Highest step of a weight.
    """

    ranges: Mapping[str, Tensor]
    layers: tuple[FakeQuantisedLayer, ...]
    levels: int

    def of(self, module: nn.Module) -> FakeQuantisation:
        """The mode in which a model of these layers rounds."""
        return FakeQuantisation(module, self.layers, levels=self.levels)

    def save(self, folder: Path) -> None:
        """Write the ranges to a folder."""
        save_file(dict(self.ranges), folder / RANGES)

    def content(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        layers = [astuple(layer) for layer in self.layers]
        return {"ranges": self.ranges, "layers": layers, "levels": self.levels}

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> "Rounding":
        """That of a checkpoint."""
        layers = tuple(FakeQuantisedLayer(*values) for values in content["layers"])
        return cls(content["ranges"], layers, content["levels"])


@dataclass(frozen=True)
class FileIn8Bits:
    """How the file in 8 bits is made of a model.

    Args:
        section: The recipe's ``quantize``, as far as scales depend on it.
        form: How the float file is written.
        round_to: As for the stage ``export``.
        remove_dead: Whether dead channels are cut out of it.
    """

    section: QuantizeSection
    form: OnnxForm
    round_to: int
    remove_dead: bool

    @classmethod
    def of(
        cls, section: QuantizeSection, form: OnnxForm, round_to: int, remove_dead: bool
    ) -> "FileIn8Bits":
        """Leave out what no scale depends on."""
        fields = QuantizeSection.model_fields
        later = {name: fields[name].default for name in ("max_divergence", "weight_update")}
        return cls(section.model_copy(update=later), form, round_to, remove_dead)

    def rounding(
        self,
        model: Model,
        module: nn.Module,
        calibration: CalibrationData,
        folder: Path | None = None,
        **changes: Any,
    ) -> Rounding:
        """Write a model, measure its activations, and read the scales that its layers get.

        Args:
            model: The dense model, which writes files.
            module: The model as it is now.
            calibration: Has the samples.
            folder: For temporary files, of which none stays; None for the system's.
            changes: Of the section.
        """
        section = self.section.model_copy(update=changes)
        with TemporaryDirectory(prefix=".work-", dir=folder) as work:
            path = Path(work, ONNX_FILES[SPARSE])
            model.write(State.of(module, {}).tensors, path, self.form, {})
            kept = shrunk(path, self.form, remove_dead=self.remove_dead, round_to=self.round_to)
            quantiser = quantiser_of(path, section, calibration, Path(work))
            scales = quantiser.scales()
        named = _parameters(model, module)
        layers = tuple(
            FakeQuantisedLayer(
                named.get(one.weight, one.weight),
                one.scale,
                one.zero_point,
                one.axis,
                tuple(kept.get(one.weight, ())),
            )
            for one in scales
        )
        ranges = {name: torch.from_numpy(both) for name, both in quantiser.ranges.items()}
        levels = _REDUCED_LEVELS if section.reduce_range else _LEVELS
        return Rounding(ranges, layers, levels)


def _parameters(model: Model, module: nn.Module) -> dict[str, str]:
    """The parameter of each name that a weight may have in the file."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    turned = {f"{name}{TRANSPOSED}": name for name in names}
    own = {stored: name for name, (stored, _) in model.stored.items()}
    return {**turned, **{name: name for name in names}, **own}


class QuantizationAware:
    """Of a training, when it rounds, and how.

    Args:
        epochs: Number of the last epochs that do.
        measure: Says how a model rounds from now on, and how far it is then from the dense one.
    """

    def __init__(self, epochs: int, measure: Callable[[nn.Module], tuple[Rounding, float]]) -> None:
        self.epochs, self._measure = epochs, measure
        self.rounding: Rounding | None = None
        """None before these epochs."""

    def start(self, module: nn.Module, ranks: Ranks) -> float:
        """Measure the scales; returns how far the model that rounds is from the dense one.

        Args:
            module: As it would ship now.
            ranks: All go on with what the first one measures.
        """
        self.rounding, divergence = ranks.on_rank_zero(lambda: self._measure(module))
        return divergence

    def rounds(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Let a model round while a block runs, if these epochs have begun."""
        return nullcontext() if self.rounding is None else self.rounding.of(module)

    def content(self) -> dict[str, Any] | None:
        """What a checkpoint must hold."""
        return self.rounding and self.rounding.content()

    def restore(self, content: Mapping[str, Any] | None) -> None:
        """Go on from :meth:`content`."""
        self.rounding = content and Rounding.restored(content)


def check_rounding(
    model: Model,
    in_8_bits: FileIn8Bits,
    calibration: CalibrationData,
    where: str,
    train: Callable[[nn.Module], None],
) -> None:
    """Try on the dense model whether its layers can round as those of its file in 8 bits, also
    while it is trained.

    Args:
        model: The dense model.
        in_8_bits: How the file is made.
        calibration: Has samples.
        where: The key that asks for it, and where it was given.
        train: Puts a model into the mode in which it is trained.

    Raises:
        InputError: If not.
    """
    module = model.copy()
    try:
        rounding = in_8_bits.rounding(model, module, calibration, samples=_TRIED, ranges="minmax")
        with rounding.of(module) as mode:
            inputs = next(calibration.batches(2, calibration.draws.pool[:2])).inputs
            run_model(module, inputs, calibration.device)
            mode.check_calls()
            train(module)
            with random_state_kept(calibration.device):
                run_model(module, inputs, calibration.device)
            mode.check_calls()
    except ValueError as error:
        raise InputError(
            f"{where}: must be 0 for a model that cannot round as its file does. {error}"
        ) from error
