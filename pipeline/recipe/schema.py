"""The recipe's schema: one frozen model per section, in the order of the stages.

Every key, default and bound of a recipe is said here once. Reading a file (YAML, variables,
overrides, line numbers) is :mod:`mfac_compress.pipeline.recipe.file`.
"""

import re
from collections.abc import Iterator
from math import inf
from typing import Annotated, Any, Literal

from onnx.defs import onnx_opset_version
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from mfac_compress.pipeline.quoting import shortened
from mfac_compress.pipeline.recipe.data_schema import (
    ArraysData,
    ArraySplits,
    Augment,
    Data,
    DataSection,
    DigitsData,
    DigitsSplits,
    FactoryData,
    FileRows,
    Folder,
    FolderSplits,
    ImageFolderData,
    Rows,
)
from mfac_compress.pipeline.recipe.section import (
    Arguments,
    Bytes,
    CallableName,
    Count,
    Index,
    NonNegative,
    NoSwitch,
    Number,
    Pattern,
    Positive,
    Section,
    Seed,
    Share,
    Text,
    Threads,
    duplicates,
)
from mfac_compress.pipeline.recipe.source import (
    KeyPath,
    RecipeIssue,
    RecipeSource,
    key_name,
)

__all__ = [
    "ArraySplits",
    "ArraysData",
    "Augment",
    "CalibrateSection",
    "Data",
    "DataSection",
    "DigitsData",
    "DigitsSplits",
    "ExportSection",
    "FactoryData",
    "FileRows",
    "FisherSection",
    "Folder",
    "FolderSplits",
    "GatesSection",
    "ImageFolderData",
    "LatencySection",
    "ModelSection",
    "PruneSection",
    "Recipe",
    "RecoverSection",
    "Rows",
    "RunSection",
    "Section",
    "TaskSection",
    "ValidateSection",
]


class RunSection(Section):
    """Where and how the run computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where there is one."""
    seed: Seed = 0
    """Seeds every random draw of the run."""
    threads: Threads | None = None
    """CPU threads of PyTorch. Default: PyTorch's own choice."""
    memory_budget: Bytes | None = None
    """Most memory for gradients and inverse, for example `8GB`. Default: 80% of what is free. With
    `fisher.block_size: full`, gradients beyond it are kept on disk, in the run directory."""


class ModelSection(Section):
    """How to build the model that the checkpoint belongs to."""

    factory: CallableName | None = None
    """`package.module:callable` or `path/to/file.py:callable`, called with `kwargs`, returns an
    nn.Module. Relative paths start at the recipe's folder. Not needed for a `.pt2` file."""
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    weights: Text | None = None
    """Where the weights stand in the checkpoint: a key, dotted for one within another (`ema`,
    `model.state_dict_ema`). Default: found, where only one set of weights can be meant."""
    prefix: str | None = None
    """What the names in the checkpoint begin with beyond the model's own, such as `backbone.`;
    other names are left out. Default: found, where all names begin with it."""


class TaskSection(Section):
    """What the model is trained for and judged by."""

    loss: Literal["cross_entropy", "mse"] | CallableName = "cross_entropy"
    """`cross_entropy`, `mse`, or `module:callable` of (outputs, targets) -> mean loss."""
    metric: Literal["accuracy"] | CallableName = "accuracy"
    """`accuracy`, or `module:callable` of (outputs, targets) -> one value per sample `[n]`, or
    one number for the whole set."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of the metric is better."""
    range: tuple[Number, Number] | None = None
    """`[low, high]`: least and greatest value that the metric can have, for one sample where it has
    values per sample. The interval of its drop rests on it; without it, on the values met, which
    show nothing of rarer and larger ones. Accuracy's is [0, 1]."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.metric == "accuracy" and self.direction == "minimize":
            yield RecipeIssue(
                ("direction",), "must be maximize where task.metric is accuracy. Got minimize."
            )
        if self.range is None:
            return
        low, high = self.range
        if self.metric == "accuracy":
            yield RecipeIssue(
                ("range",),
                "must be left out where task.metric is accuracy, whose range is [0, 1]. "
                f"Got [{low:g}, {high:g}].",
            )
        elif not 0 < high - low < inf:
            yield RecipeIssue(
                ("range",),
                "must be [low, high] with low below high, and a finite distance. "
                f"Got [{low:g}, {high:g}].",
            )


class CalibrateSection(Section):
    """The gradients that the Fisher is made of."""

    num_gradients: Count = 512
    """m. Exactly this many, or the run ends with an error."""
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


class PruneSection(Section):
    """Which weights go, and how the others make up for them."""

    method: Literal["mfac", "magnitude"] = "mfac"
    """What a weight is worth: the loss that its removal costs, or its size."""
    sparsity: Share
    """Share of the matched weights to remove."""
    scope: Literal["global", "layerwise"] = "global"
    """Compare weights across all tensors, or give each tensor the same sparsity."""
    include: Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=1000)] = ("*",)
    """Modules or parameters to prune: exact names, globs, or `re:` patterns. Only the weights of
    convolutions, linear and recurrent layers are ever pruned; the dry run lists the others."""
    exclude: Annotated[tuple[Pattern, ...], Field(max_length=1000)] = ()
    """Taken away from `include`."""
    overrides: Annotated[dict[Pattern, Share], Field(max_length=1000)] = Field(default_factory=dict)
    """Pattern -> sparsity of those tensors, each on its own; `sparsity` is for the others."""
    steps: Count = 1
    """Times that gradients and inverse are computed anew on the way."""
    schedule: Literal["geometric", "linear"] = "geometric"
    """How the density (geometric) or the sparsity (linear) moves over the steps."""
    selection: Literal["independent", "sequential"] | None = None
    """`independent`: what each weight's removal costs on its own. `sequential`: within a block, one
    weight is removed at a time, and the others are judged anew. Default: `sequential` where the
    Fisher is kept as blocks, else `independent`."""
    first_order: bool = True
    """Also follow the gradient that the pruned model has, as far as it lowers the loss on held-out
    calibration samples. Default: true where `update` is `joint`."""
    update: Literal["joint", "single", "none"] = "joint"
    """`joint`: exact for the whole removed set. `single`: the paper's sum of single-weight
    corrections. `none`: the others stay as they are; the only choice with `magnitude`."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, given: Any) -> Any:
        """Magnitude knows no update, and weights that are not to move follow no gradient."""
        if not isinstance(given, dict):
            return given
        if given.get("method") == "magnitude":
            given = {"update": "none"} | given
        if given.get("update", "joint") != "joint":
            given = {"first_order": False} | given
        return given

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
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
        if self.method == "magnitude" and self.selection == "sequential":
            yield RecipeIssue(
                ("selection",),
                "must be independent, or left out, where prune.method is magnitude: sizes do not "
                "change as others go. Got sequential.",
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


def _unreadable(key: KeyPath, pattern: str) -> Iterator[RecipeIssue]:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as error:
            got = shortened(pattern)
            yield RecipeIssue(
                key, f"must hold a regular expression after re:. Got {got!r}: {error}."
            )


class SlidingWindowSection(Section):
    """The Fisher of the optimizer `mfac`."""

    num_gradients: Count = 128
    """The newest gradients, of which it is made."""
    damping: Positive = 1e-5
    """λ."""


class RecoverSection(Section):
    """Short fine-tuning in which no removed weight comes back."""

    epochs: Index = 0
    """Passes over the recovery split. 0: no recovery."""
    optimizer: Literal["sgd", "adamw", "mfac"] = "sgd"
    """What turns gradients into steps. `mfac` preconditions them by the Fisher of a sliding window
    of gradients, which needs `window.num_gradients` times the model's memory."""
    lr: Positive = 0.01
    """Learning rate at the start."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate moves from `lr` to the end."""
    momentum: Share = 0.9
    """Of `sgd` and `mfac`."""
    window: SlidingWindowSection = SlidingWindowSection()
    """Of `mfac`."""
    weight_decay: NonNegative = 1e-4
    """Pull of every weight towards zero."""
    batch_size: Count = 128
    """Samples of one step."""
    label_smoothing: Share = 0.0
    """Of the loss `cross_entropy`."""
    batchnorm: Literal["auto", "always", "never"] = "auto"
    """Re-estimate batch-norm statistics after pruning. `auto`: where it lowers the loss on the
    held-out calibration samples."""


# YAML reads `off` as false.
_OFF_IS_A_WORD = BeforeValidator(lambda value: "off" if value is False else value)


class ExportSection(Section):
    """The ONNX files."""

    opset: Annotated[int, Field(ge=18), NoSwitch] = 18
    """Version of the ONNX operators."""
    dynamic_batch: bool = True
    """Leave the batch size open. Otherwise it is `validate.batch_size`."""
    input_name: Text = "input"
    """Name of the graph's input."""
    output_name: Text = "output"
    """Name of the graph's output."""
    sparse_kernels: Annotated[Literal["auto", "off"], _OFF_IS_A_WORD] = "auto"
    """`auto`: where the sparse kernels are built and measure faster, write `model.sparse.onnx` for
    them, too. The plain `model.onnx` is always written."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        newest = onnx_opset_version()
        if self.opset > newest:
            yield RecipeIssue(
                ("opset",),
                f"must be at most {newest}, the newest that the installed onnx knows. "
                f"Got {self.opset}.",
            )
        if self.input_name == self.output_name:
            yield RecipeIssue(
                ("output_name",),
                f"must differ from export.input_name. Got {self.output_name!r} for both.",
            )


class LatencySection(Section):
    """How latency is measured: dense and sparse in turn, both opened anew up to 20 times."""

    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 16)
    """Samples of one call."""
    threads: Annotated[tuple[Threads, ...], Field(min_length=1)] = (1,)
    """Threads of ONNX Runtime."""
    warmup: Index = 2
    """Calls of each file that are not timed, each time it is opened; at least one."""
    runs: Annotated[int, Field(ge=6), NoSwitch] = 40
    """Timed runs of each file. Six is the fewest that give a 95% interval of the median."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from duplicates("batch_sizes", self.batch_sizes)
        yield from duplicates("threads", self.threads)


class GatesSection(Section):
    """What the release must meet. A gate that is not set is not applied."""

    max_metric_drop: Number | None = None
    """Most that the metric may get worse from dense to sparse, in the metric's own unit (0.01 of
    accuracy is one point)."""
    confidence: Annotated[float, Field(gt=0, lt=1), NoSwitch] | Literal["none"] = 0.95
    """Of the intervals of the metric and its drop: their worse ends must pass at this level; `none`
    compares the point estimates."""
    min_metric: Number | None = None
    """Least that the sparse file's metric may be, where more is better: the lower end of its own
    interval must pass."""
    max_metric: Number | None = None
    """Most that the sparse file's metric may be, where less is better: the upper end of its own
    interval must pass."""
    min_sparsity: Share | None = None
    """Of the matched weights, counted in the ONNX file."""
    min_model_sparsity: Share | None = None
    """Of all parameters of the model: the removed weights, counted in the ONNX file."""
    max_size_ratio: Positive | None = None
    """Compressed size of the sparse file / of the dense file. The kernels' library is not
    counted."""
    max_latency_ratio: Positive | None = None
    """Latency of the sparse file / of the dense file, upper end of the interval, worst of all
    batch sizes and threads."""
    max_parity_error: Positive | None = None
    """Largest absolute difference between the outputs of PyTorch and ONNX Runtime."""


class ValidateSection(Section):
    """What is measured in ONNX Runtime on the file that ships."""

    artifact: Literal["model.onnx", "model.sparse.onnx"] = "model.onnx"
    """The file that ships: the gates apply to it. `model.sparse.onnx` needs the sparse kernels
    wherever it runs; the run ends with an error if it was not written."""
    batch_size: Count = 256
    """Samples of one call when the metric is measured."""
    latency: LatencySection | None = LatencySection()
    """`null`: not measured."""
    gates: GatesSection = GatesSection()


class Recipe(Section):
    """A whole recipe."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: Data
    task: TaskSection = TaskSection()
    calibrate: CalibrateSection = CalibrateSection()
    fisher: FisherSection = FisherSection()
    prune: PruneSection
    recover: RecoverSection = RecoverSection()
    export: ExportSection = ExportSection()
    validate_: ValidateSection = Field(default=ValidateSection(), alias="validate")

    _source: RecipeSource = PrivateAttr(default_factory=RecipeSource)

    @property
    def source(self) -> RecipeSource:
        """Origin of the recipe; one made in Python starts its relative paths where it was made."""
        return self._source

    def where(self, key: str, *parts: str | int) -> str:
        """Say where a key was given, for messages.

        Args:
            key: Dotted key path, for example ``"prune.include"``.
            parts: Further parts, taken as they are: a position in a list, a pattern with dots.
        Returns:
            ``recipes/digits.yaml:14 (prune.include)``; for a key given by ``--set``, or in a recipe
            without a file, only that.
        """
        path = (*key.split("."), *parts)
        name, place = key_name(path), self._source.place(path)
        if not place:
            return name
        return place if place == f"--set {name}" else f"{place} ({name})"

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        splits = getattr(self.data, "splits", None)
        if self.recover.epochs and splits is not None and splits.recovery is None:
            yield RecipeIssue(
                ("data", "splits", "recovery"),
                "must be given where recover.epochs > 0. "
                f"Got recover.epochs = {self.recover.epochs} and no recovery split.",
            )
        if self.recover.label_smoothing and self.task.loss != "cross_entropy":
            yield RecipeIssue(
                ("recover", "label_smoothing"),
                "must be 0 unless task.loss is cross_entropy. "
                f"Got {self.recover.label_smoothing} with task.loss = {self.task.loss}.",
            )
        if self.validate_.artifact != "model.onnx" and self.export.sparse_kernels == "off":
            yield RecipeIssue(
                ("validate", "artifact"),
                "must be model.onnx where export.sparse_kernels is off, which writes no other. "
                f"Got {self.validate_.artifact}.",
            )
        useless = "max_metric" if self.task.direction == "maximize" else "min_metric"
        if getattr(self.validate_.gates, useless) is not None:
            other = "min_metric" if useless == "max_metric" else "max_metric"
            yield RecipeIssue(
                ("validate", "gates", useless),
                f"must be left out where task.direction is {self.task.direction}: it would stop "
                f"good models. Got {getattr(self.validate_.gates, useless):g}. Set {other}.",
            )
        latency, batch = self.validate_.latency, self.validate_.batch_size
        if not self.export.dynamic_batch and latency and set(latency.batch_sizes) != {batch}:
            yield RecipeIssue(
                ("validate", "latency", "batch_sizes"),
                f"must be [{batch}] (validate.batch_size) where export.dynamic_batch is false: the "
                f"file takes no other. Got {list(latency.batch_sizes)}.",
            )

    @model_validator(mode="after")
    def _keeps_its_source(self, info: ValidationInfo) -> "Recipe":
        if isinstance(info.context, RecipeSource):
            self._source = info.context
        return self
