"""The sections of a recipe that say which weights go: fisher and prune."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.pattern_schema import BlockPattern, NMPattern, Zeros
from mfac_compress.pipeline.recipe.schedule_schema import Schedule, ScheduleSection
from mfac_compress.pipeline.recipe.section import (
    Count,
    Index,
    NonNegative,
    Pattern,
    Positive,
    Section,
    Share,
    Steps,
    Text,
    duplicates,
)
from mfac_compress.pipeline.recipe.source import KeyPath, RecipeIssue, RecipeSource


class FisherSection(Section):
    """The damped empirical Fisher and its inverse."""

    damping: Positive = 1e-5
    """λ of F = λI + 1/m Σ gᵢgᵢᵀ, in the unit of `damping_unit`."""
    damping_unit: Literal["absolute", "mean_diagonal"] = "absolute"
    """`mean_diagonal`: the damping is a multiple of the mean of the undamped Fisher's diagonal, so
    that it fits models and losses of any scale."""
    block_size: Count | Literal["full"] = 128
    """Side of the diagonal blocks, which never straddle two tensors; `full`: one block of all."""
    blocks: Literal["tensor", "row"] = "tensor"
    """`tensor`: each tensor is cut every `block_size` weights. `row`: blocks follow its rows
    (output channels), cut or put together to come near `block_size`."""
    window_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Storage of the gradients. Sums run in float32 or more."""


class LayerwiseSection(Section):
    """The inputs of layers, by which the method `layerwise` prunes them."""

    samples: Count = 1000
    """Calibration samples, beside the held-out ones."""
    positions: Count | Literal["all"] = 64
    """Random positions of each sample (pixels, tokens) at which a layer is looked at. Padding,
    as `attention_mask` marks it, does not count."""
    ridge: NonNegative = 1e-3
    """What is added to the inputs' second moments, as a multiple of their mean square."""


class PruneSection(Section):
    """Which weights go, and how the others make up for them."""

    method: Literal["mfac", "layerwise", "magnitude", "given"] = "mfac"
    """What a weight is worth: the loss that its removal costs, by gradients; the error of its
    layer's output, by the layer's inputs and without labels; or its size. `given`: nothing is
    pruned, `masks` and `weights` are taken; the default where they are named."""
    sparsity: Share | None = None
    """Share of the matched weights to remove. Must be given, but for the method `given`."""
    masks: Text | None = None
    """Of `given`: the `masks.safetensors` of an earlier run, with which the weights were trained
    elsewhere. The run goes on from there. MODEL stays the dense model, which all gates compare
    with."""
    weights: Text | None = None
    """Of `given`: the trained weights, a checkpoint of the same model in which every weight that
    the masks remove is zero."""
    pattern: Zeros = "unstructured"
    """Where zeros may be. `unstructured`: anywhere. `{block: 4, axis: outputs}`: four neighbouring
    weights go together, which sparse kernels run much faster. `{n: 2, m: 4}`: two of each four
    inputs are kept. `channels` of convolutions, `heads` of attention, `neurons` between other
    layers: each goes with all weights that read it and that make it, and is cut out of the file;
    `sparsity` is the share of them."""
    permute: bool = False
    """Put channels that are alike side by side first, where the layers that read them can take them
    in another order: blocks of weights then lose less. All files of the run hold the model so
    ordered, which computes what it did; names, inputs and outputs stay. For blocks only."""
    scope: Literal["global", "layerwise"] = "global"
    """Compare weights across all tensors, or give each tensor the same sparsity."""
    allocation: Literal["uniform", "errors", "fisher"] | None = None
    """How many weights each tensor loses, with `layerwise`. `uniform`: the same share of each, the
    default. `errors`: by the errors of the layers' outputs, relative to these. `fisher`: as many as
    `mfac` would take, which needs gradients."""
    layerwise: LayerwiseSection = LayerwiseSection()
    """Of `layerwise`."""
    include: Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=1000)] = ("*",)
    """Modules or parameters to prune: exact names, globs, or `re:` patterns. Only the weights of
    convolutions, linear and recurrent layers are ever pruned; the dry run lists the others."""
    exclude: Annotated[tuple[Pattern, ...], Field(max_length=1000)] = ()
    """Taken away from `include`."""
    overrides: Annotated[dict[Pattern, Share], Field(max_length=1000)] = Field(default_factory=dict)
    """Pattern -> sparsity of those tensors, each on its own; `sparsity` is for the others."""
    steps: Steps = 1
    """Times that gradients and inverse are computed anew on the way."""
    schedule: Schedule = ScheduleSection()
    """How sparsity grows over the steps: `geometric`, `linear` or `cubic`, or a mapping such as
    `{init: 0.3, final: 0.9, steps: 8, interpolation: cubic, epochs_between: 1}`."""
    epochs_between: Index = 0
    """Passes over the recovery split after each step but the last, as `recover` says, each time
    with the whole course of the learning rate. After the last step it is `recover.epochs`."""
    selection: Literal["independent", "sequential"] | None = None
    """`independent`: what each weight's removal costs on its own. `sequential`: within a block, one
    weight is removed at a time, and the others are judged anew. Default: `sequential` where the
    Fisher is kept as blocks, else `independent`."""
    first_order: bool = True
    """Also follow the gradient that the pruned model has, as far as its outputs come nearer to the
    dense model's on held-out calibration samples. Default: true where `update` is `joint`."""
    update: Literal["joint", "single", "none"] = "joint"
    """`joint`: exact for the whole removed set. `single`: the paper's sum of single-weight
    corrections. `none`: the others stay as they are; the only choice with `magnitude`."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, given: Any, info: ValidationInfo) -> Any:
        """The schedule's keys, no update by magnitude, and no step without a gradient.

        Where `--set` gives the masks, the file's keys of pruning do not count; where it gives the
        method, those of `layerwise` do not.
        """
        if not isinstance(given, dict):
            return given
        source = info.context if isinstance(info.context, RecipeSource) else RecipeSource()
        if ("prune", "masks") in source.overridden:
            kept = ("masks", "weights")
            given = {
                key: value
                for key, value in given.items()
                if key in kept or ("prune", key) in source.overridden
            }
        given = ScheduleSection.moved_out(given)
        if given.get("masks") is not None:
            given = {"method": "given"} | given
        if ("prune", "method") in source.overridden and given.get("method") != "layerwise":
            given = _without_layerwise(given, source)
        if given.get("method") in ("magnitude", "given"):
            given = {"update": "none"} | given
        if given.get("method") == "layerwise":
            given = {"first_order": False} | given
            given["allocation"] = given.get("allocation") or "uniform"
        if given.get("update", "joint") != "joint":
            given = {"first_order": False} | given
        return given

    @property
    def uses_gradients(self) -> bool:
        """Whether anything rests on gradients of the loss, and with that on labels."""
        return self.method == "mfac" or self.allocation == "fisher"

    @property
    def zeros(self) -> str:
        """Where zeros are, in words: `unstructured`, or `blocks of 4 outputs`."""
        return f"as in {self.masks}" if self.method == "given" else str(self.pattern)

    @property
    def removes_channels(self) -> bool:
        """Whether whole channels, heads or neurons go."""
        return self.pattern in ("channels", "heads", "neurons")

    @property
    def competes_globally(self) -> bool:
        """Whether tensors compete with each other for how many weights each loses."""
        return self.scope == "global" and self.allocation != "uniform"

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from self._given_issues()
        if self.method == "given":
            return
        yield from self._layerwise_issues()
        yield from self.schedule.contradictions(self)
        if self.method == "magnitude" and self.update != "none":
            yield RecipeIssue(
                ("update",),
                "must be none where prune.method is magnitude, which computes no curvature. "
                f"Got {self.update}.",
            )
        if self.update == "none" and self.first_order:
            yield RecipeIssue(
                ("first_order",),
                "must be false where prune.update is none, which leaves the weights as they are. "
                "Got true.",
            )
        if self.epochs_between and self.steps == 1:
            yield RecipeIssue(
                ("epochs_between",),
                f"must be 0 where prune.steps is 1. Got {self.epochs_between}. Set recover.epochs.",
            )
        if self.method == "magnitude" and self.selection == "sequential":
            yield RecipeIssue(
                ("selection",),
                "must be independent, or left out, where prune.method is magnitude: sizes do not "
                "change as others go. Got sequential.",
            )
        if isinstance(self.pattern, NMPattern):
            yield from self._other_sparsities(self.pattern)
        if isinstance(self.pattern, BlockPattern) and self.selection == "sequential":
            yield RecipeIssue(
                ("selection",),
                f"must be independent, or left out, where prune.pattern is {self.pattern}: only "
                "single weights are judged anew as others go. Got sequential.",
            )
        if self.removes_channels:
            yield from self._channel_issues()
        if self.permute and not isinstance(self.pattern, BlockPattern):
            yield RecipeIssue(
                ("permute",),
                "must be false unless prune.pattern is blocks, as in {block: 4, axis: outputs}. "
                "Got true.",
            )
        yield from duplicates("include", self.include)
        yield from duplicates("exclude", self.exclude)
        for position, pattern in enumerate(self.exclude):
            if pattern in self.include or pattern in self.overrides:
                other = "include" if pattern in self.include else "overrides"
                yield RecipeIssue(
                    ("exclude", position),
                    f"must not repeat a pattern of prune.{other}. Got {pattern!r} in both.",
                )
        patterns: dict[KeyPath, str] = {
            **{("include", i): pattern for i, pattern in enumerate(self.include)},
            **{("exclude", i): pattern for i, pattern in enumerate(self.exclude)},
            **{("overrides", pattern): pattern for pattern in self.overrides},
        }
        for key, pattern in patterns.items():
            yield from _unreadable(key, pattern)

    def _given_issues(self) -> Iterator[RecipeIssue]:
        """Keys of the method `given`, and those that it has no use for."""
        if self.method != "given":
            for key in ("masks", "weights"):
                if getattr(self, key) is not None:
                    text = f"must be left out unless prune.method is given. Got {self.method}."
                    yield RecipeIssue((key,), text)
            if self.sparsity is None:
                text = "must be a number of at least 0 and below 1. It is missing. Add it."
                yield RecipeIssue(("sparsity",), text)
            return
        for key, what in (("masks", "masks.safetensors of a run"), ("weights", "a checkpoint")):
            if getattr(self, key) is None:
                text = f"must name {what} where prune.method is given. It is missing. Add it."
                yield RecipeIssue((key,), text)
        needed = {"method": "given", "update": "none", "first_order": False}
        for key, field in PruneSection.model_fields.items():
            value = getattr(self, key)
            if key not in ("masks", "weights") and value != needed.get(
                key, field.get_default(call_default_factory=True)
            ):
                yield RecipeIssue(
                    (key,),
                    "must be left out where prune.masks says which weights are removed. "
                    f"Got {value}.",
                )

    def _channel_issues(self) -> Iterator[RecipeIssue]:
        """Keys that do not go with whole channels."""
        if self.method == "layerwise":
            yield RecipeIssue(
                ("method",),
                f"must be mfac or magnitude where prune.pattern is {self.pattern}: layers share "
                "channels, and cannot be pruned one by one. Got layerwise.",
            )
        if self.selection == "sequential":
            yield RecipeIssue(
                ("selection",),
                f"must be independent, or left out, where prune.pattern is {self.pattern}: only "
                "single weights are judged anew as others go. Got sequential.",
            )

    def _layerwise_issues(self) -> Iterator[RecipeIssue]:
        """Keys that the method layerwise has no use for, and those that only it has."""
        method = "prune.method is layerwise"
        if self.method != "layerwise":
            if self.allocation is not None:
                yield RecipeIssue(
                    ("allocation",),
                    f"must be left out unless {method}. Got {self.allocation}. See prune.scope.",
                )
            for key, field in LayerwiseSection.model_fields.items():
                given = getattr(self.layerwise, key)
                if given != field.default:
                    yield RecipeIssue(
                        ("layerwise", key), f"must be left out unless {method}. Got {given}."
                    )
            return
        if self.update == "single":
            yield RecipeIssue(("update",), f"must be joint or none where {method}. Got single.")
        if self.first_order:
            yield RecipeIssue(
                ("first_order",),
                f"must be false where {method}, which knows no gradient of the "
                "pruned model. Got true.",
            )
        if self.selection is not None and self.allocation != "fisher":
            yield RecipeIssue(
                ("selection",),
                f"must be left out where {method}: weights of a row always go one after the other. "
                f"Got {self.selection}.",
            )
        if self.allocation == "uniform":
            return
        if self.scope == "layerwise":
            yield RecipeIssue(
                ("allocation",),
                f"must be uniform where prune.scope is layerwise. Got {self.allocation}.",
            )
        if isinstance(self.pattern, NMPattern):
            yield RecipeIssue(
                ("allocation",),
                f"must be uniform where prune.pattern keeps {self.pattern}: no tensor can lose "
                f"more. Got {self.allocation}.",
            )

    def _other_sparsities(self, pattern: NMPattern) -> Iterator[RecipeIssue]:
        """Sparsities that n of m does not have."""
        given = {("sparsity",): self.sparsity}
        given |= {("overrides", name): sparsity for name, sparsity in self.overrides.items()}
        for key, sparsity in given.items():
            if abs(sparsity - pattern.sparsity) > 1e-6:
                yield RecipeIssue(
                    key,
                    f"must be {pattern.sparsity:.7g} where prune.pattern keeps {pattern}. "
                    f"Got {sparsity:g}.",
                )


def _without_layerwise(given: dict[str, Any], source: RecipeSource) -> dict[str, Any]:
    """The keys of a section without those of the method layerwise, but for what `--set` gave."""
    given, own = dict(given), given.get("layerwise")
    if ("prune", "allocation") not in source.overridden:
        given.pop("allocation", None)
    if isinstance(own, dict) and ("prune", "layerwise") not in source.overridden:
        given["layerwise"] = {
            key: value
            for key, value in own.items()
            if ("prune", "layerwise", key) in source.overridden
        }
    return given


def _unreadable(key: KeyPath, pattern: str) -> Iterator[RecipeIssue]:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            got = shortened(pattern)
            yield RecipeIssue(
                key, f"must hold a regular expression after re:. Got {got!r}: {error}."
            )
