"""The section of a recipe that says which gradients the Fisher is made of: calibrate."""

from bisect import bisect_right
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.section import Count, Section, SectionError, Seed, Share
from mfac_compress.pipeline.recipe.source import RecipeIssue

_SHARE, _COUNT = TypeAdapter(Share), TypeAdapter(Count)
_ROUNDING = 1e-6
"""What a sparsity may fall short of its key: weights are whole, and 0.45 is 0.449... in binary."""


def _by_sparsity(given: Any) -> Any:
    """A mapping with its sparsities as numbers, in ascending order; anything else as it is."""
    if not isinstance(given, dict):
        return given
    found: dict[float, int] = {}
    for key, value in given.items():
        sparsity = _checked(_SHARE, key, "must have sparsities of at least 0 and below 1 as keys.")
        if sparsity in found:
            raise _issue("must have each sparsity once.", key)
        about = f"must have whole numbers of at least 1. At {shortened(str(key), 20)} it has not."
        found[sparsity] = _checked(_COUNT, value, about)
    if 0 not in found:
        first = min(found, default="an empty mapping")
        raise _issue("must have a number for the sparsity 0, of the first step.", first)
    return dict(sorted(found.items()))


def _checked(kind: TypeAdapter[Any], value: Any, text: str) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError:
        raise _issue(text, value) from None


def _issue(text: str, got: Any) -> SectionError:
    return SectionError((RecipeIssue((), f"{text} Got {shortened(str(got), 40)}."),))


GradientCounts = Annotated[
    Count | Annotated[dict[Share, Count], Field(max_length=1000)], BeforeValidator(_by_sparsity)
]


class CalibrateSection(Section):
    """The gradients that the Fisher is made of."""

    num_gradients: GradientCounts = 512
    """m. Exactly this many, or the run ends with an error. Or a mapping such as `{0: 256, 0.5: 512,
    0.8: 1024}`: so many from this sparsity on, as the model has it before a pruning step."""
    samples_per_gradient: Count = 8
    """Samples whose mean loss makes one gradient."""
    labels: Literal[True, "model"] = True
    """`true`: the data's. `model`: drawn from the model's own prediction, or random projections of
    outputs that are no classes; the calibration data then needs no labels."""
    gradients: Literal["loop", "vmap", "auto"] = "loop"
    """How gradients are computed. `auto` times both on the first batches and takes the faster one.
    They differ in rounding, so two runs with `auto` may; the resolved recipe says what it was."""
    seed: Seed | None = None
    """Seed of the draw. Default: `run.seed`."""
    holdout: Share = 0.2
    """Share of the calibration split kept out of the gradients, for choices such as
    `recover.batchnorm: auto`."""

    @property
    def counts(self) -> dict[float, int]:
        """Sparsity -> number of gradients from there on, in ascending order."""
        given = self.num_gradients
        return given if isinstance(given, dict) else {0.0: given}

    def gradients_at(self, sparsity: float) -> int:
        """The number of gradients of a model of some sparsity: of the largest key not above it.

        >>> CalibrateSection(num_gradients={0: 64, 0.5: 128}).gradients_at(0.5)
        128
        """
        reached = bisect_right([*self.counts], sparsity + _ROUNDING)
        return [*self.counts.values()][reached - 1]
