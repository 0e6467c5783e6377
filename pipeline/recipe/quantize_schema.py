"""The section of a recipe that says what is computed in 8 bits: quantize."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, model_validator

from mfac_compress.pipeline.recipe.section import Count, NonNegative, Section
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource

# YAML reads `off` as false.
_OFF_IS_A_WORD = BeforeValidator(lambda value: "off" if value is False else value)


class QuantizeSection(Section):
    """A further file in 8 bits (int8), made by ONNX Runtime's own quantiser of the pruned model.

    Weights are signed and symmetric, so that zeros stay zeros; activations are unsigned. `quantize:
    static` is short for `quantize: {mode: static}`.
    """

    mode: Annotated[Literal["off", "static", "dynamic"], _OFF_IS_A_WORD] = "off"
    """`static`: the ranges of activations are measured on calibration samples. `dynamic`: each call
    finds them anew; only matrix products are quantised, as in language models."""
    samples: Count = 512
    """Calibration samples on which ranges are measured, beside the held-out ones."""
    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
    """What the range of an activation is, with `static`: all values, those that keep most of the
    information, or 99.999% of them."""
    per_channel: bool = True
    """A scale for each output of a layer. Otherwise one for all of them."""
    reduce_range: bool = True
    """Use 7 of the weights' 8 bits. Processors without VNNI (AVX2, and AVX-512 before it) add pairs
    of products in 16 bits, which overflow otherwise, and ONNX Runtime's outputs are wrong there."""
    weight_update: Literal["none", "obs"] | None = None
    """How weights are rounded. `none`: each to its nearest step. `obs`: by layers, one weight after
    the other, those that are not rounded yet making up for the error; where a layer's outputs, and
    the model's, come nearer to those in float on held-out calibration samples. Default: `obs`, but
    `none` after quantization-aware epochs (`recover.quantization_aware`), which round so."""
    max_divergence: NonNegative | None = 0.01
    """Most that the outputs may move away from those of `model.onnx` on held-out calibration
    samples: mean KL divergence for classes, else mean squared difference in units of the outputs'
    variance. The layers that cost most are left in float until it holds. `null`: none is."""

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, given: Any, info: ValidationInfo) -> Any:
        """A plain word is the mode. Where `--set` switches it off, the file's keys do not count."""
        if given is False or isinstance(given, str):
            return {"mode": given}
        source = info.context if isinstance(info.context, RecipeSource) else RecipeSource()
        if isinstance(given, dict) and given.get("mode") in (False, "off"):
            by_set = ("quantize", "mode") in source.overridden
            own = {key for key in given if ("quantize", key) in source.overridden}
            return {key: value for key, value in given.items() if key in own or not by_set}
        return given

    @property
    def is_on(self) -> bool:
        """Whether there is a file in 8 bits."""
        return self.mode != "off"

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        for key, field in type(self).model_fields.items():
            given = getattr(self, key)
            if not self.is_on and given != field.default:
                yield RecipeIssue(
                    (key,), f"must be left out where quantize.mode is off. Got {given}."
                )
        if self.mode == "dynamic" and self.ranges != "minmax":
            yield RecipeIssue(
                ("ranges",),
                "must be minmax, or left out, where quantize.mode is dynamic, which measures none "
                f"beforehand. Got {self.ranges}.",
            )
