"""The recipe's schema: one frozen model per section. This file has the general ones.

Every key, default and bound of a recipe is said once, here and in the schemas imported below.
Reading a file (YAML, overrides, lines) is :mod:`mfac_compress.pipeline.recipe.file`.
"""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, PrivateAttr, ValidationInfo, model_validator

from mfac_compress.pipeline.file_names import IN_8_BITS, INT8, ONNX_FILES, SPARSE, WITH_KERNELS
from mfac_compress.pipeline.quoting import listed
from mfac_compress.pipeline.recipe.calibrate_schema import CalibrateSection
from mfac_compress.pipeline.recipe.compress_schema import FisherSection, PruneSection
from mfac_compress.pipeline.recipe.data_parts import DataSection, FileRows, Rows
from mfac_compress.pipeline.recipe.data_schema import (
    ArrayRows,
    ArraysData,
    ArraySplits,
    Augment,
    Data,
    DigitsData,
    DigitsSplits,
    FactoryData,
    Folder,
    FolderSplits,
    ImageFolderData,
)
from mfac_compress.pipeline.recipe.measure_schema import (
    ExportSection,
    GatesSection,
    LatencySection,
    MetricGates,
    ValidateSection,
)
from mfac_compress.pipeline.recipe.pattern_schema import BlockPattern, NMPattern
from mfac_compress.pipeline.recipe.quantize_schema import QuantizeSection
from mfac_compress.pipeline.recipe.reconstruct_schema import BlocksSection, ReconstructSection
from mfac_compress.pipeline.recipe.recover_schema import DistillSection, RecoverSection
from mfac_compress.pipeline.recipe.section import (
    Arguments,
    Bytes,
    CallableName,
    Index,
    NoSwitch,
    Section,
    Seed,
    Text,
    Threads,
)
from mfac_compress.pipeline.recipe.source import (
    KeyPath,
    RecipeIssue,
    RecipeSource,
    key_name,
)
from mfac_compress.pipeline.recipe.task_schema import RANGES, MetricSection, TaskSection
from mfac_compress.pipeline.recipe.text_schema import TextData, TextSplits, with_open_lengths

__all__ = [
    "RANGES",
    "ArrayRows",
    "ArraySplits",
    "ArraysData",
    "Augment",
    "BlockPattern",
    "BlocksSection",
    "CalibrateSection",
    "Data",
    "DataSection",
    "DigitsData",
    "DigitsSplits",
    "DistillSection",
    "ExportSection",
    "FactoryData",
    "FileRows",
    "FisherSection",
    "Folder",
    "FolderSplits",
    "GatesSection",
    "ImageFolderData",
    "LatencySection",
    "MetricGates",
    "MetricSection",
    "ModelSection",
    "NMPattern",
    "PruneSection",
    "QuantizeSection",
    "Recipe",
    "ReconstructSection",
    "RecoverSection",
    "Rows",
    "RunSection",
    "Section",
    "TaskSection",
    "TextData",
    "TextSplits",
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
    """Most memory for gradients and inverse, and for the values of layers that are repaired or
    pruned by their inputs, for example `8GB`. Default: 80% of what is free. With
    `fisher.block_size: full`, gradients beyond it are kept on disk, in the run directory."""
    cache: Text | None = None
    """Folder in which runs share what their stages have made, for example
    `~/.cache/mfac-compress`; made where it is not there. Default: each run keeps its own."""
    cache_size: Bytes = ByteSize(20_000_000_000)
    """Most bytes in `run.cache`. Beyond it, what was not used for the longest time goes. Files that
    a run uses stay in its own directory."""
    rank_timeout: Annotated[float, Field(gt=0, le=604_800), NoSwitch] = 1800
    """Seconds that the processes of a run wait for one that does not come before they end the run;
    for the first process they wait twice as long, and while it works alone (it exports and
    measures) as long as that takes."""


class ModelSection(Section):
    """How to build the model that the checkpoint belongs to."""

    task: Literal["sequence-classification", "image-classification", "embedding"] | None = None
    """What a folder of transformers is loaded for; needed for such a folder, and for nothing else.
    `...-classification`: returns logits `[n, classes]`, or a score `[n]` where there is one.
    `embedding`: one vector of length 1 for each text."""
    pooling: Literal["mean", "cls"] | None = None
    """Of `model.task: embedding`: what makes one vector of those of the tokens, their `mean`
    without padding (the default) or the first one (`cls`)."""
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
    output: Text | Index | None = None
    """The output to use, where the model returns several: a key or attribute (`logits`), a position
    (`0`), or a dotted path of these (`encoder.0`). Default: all outputs."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        if self.pooling and self.task != "embedding":
            yield RecipeIssue(
                ("pooling",),
                "must be left out unless model.task is embedding. "
                f"Got {self.pooling} with model.task = {self.task or 'none'}.",
            )


class Recipe(Section):
    """A whole recipe."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: Data
    task: TaskSection = TaskSection()
    calibrate: CalibrateSection = CalibrateSection()
    fisher: FisherSection = FisherSection()
    prune: PruneSection
    reconstruct: ReconstructSection = ReconstructSection()
    recover: RecoverSection = RecoverSection()
    quantize: QuantizeSection = QuantizeSection()
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
        yield from self._recovery_split()
        if self.recover.loop and self.prune.epochs_between:
            yield RecipeIssue(
                ("prune", "epochs_between"),
                "must be 0 where recover.loop is given, which trains after the last step only. "
                f"Got {self.prune.epochs_between}.",
            )
        for issue in self.recover.issues_of_task(self.task.loss):
            yield replace(issue, key=("recover", *issue.key))
        yield from self._quantization_aware_issues()
        yield from self._gradient_issues()
        yield from self._loss_issues()
        if isinstance(self.data, TextData):
            yield from self.data.issues_of_use(self.model.task, self.export.dynamic_axes)
        yield from self._unwritten_artifact()
        named = {name for axes in self.export.dynamic_axes.values() for name in axes.values()}
        for name in (self.validate_.latency or LatencySection()).lengths:
            if name not in named:
                yield RecipeIssue(
                    ("validate", "latency", "lengths", name),
                    f"must be the name of an axis of export.dynamic_axes: "
                    f"{', '.join(sorted(named)) or 'none is there'}. Got {name!r}.",
                )
        pattern, side = self.prune.pattern, self.fisher.block_size
        blocks = isinstance(pattern, BlockPattern) and self.prune.uses_gradients
        if blocks and side != "full" and side % pattern.block:
            yield RecipeIssue(
                ("fisher", "block_size"),
                f"must be a multiple of prune.pattern.block ({pattern.block}), so that each block "
                f"of the Fisher holds whole blocks of weights. Got {side}.",
            )
        yield from self._gate_issues()
        latency, batch = self.validate_.latency, self.validate_.batch_size
        if not self.export.dynamic_batch and latency and set(latency.batch_sizes) != {batch}:
            yield RecipeIssue(
                ("validate", "latency", "batch_sizes"),
                f"must be [{batch}] (validate.batch_size) where export.dynamic_batch is false: the "
                f"file takes no other. Got {list(latency.batch_sizes)}.",
            )

    def _gate_issues(self) -> Iterator[RecipeIssue]:
        """Whether gates are on metrics that the task has, and on the side where files are bad."""
        task, gates = self.task, self.validate_.gates
        yield from _wrong_side(task, "task", gates, ("validate", "gates"))
        for name, own in gates.further_metrics.items():
            key = ("validate", "gates", "further_metrics", name)
            metric = task.further_metrics.get(name)
            if metric is not None:
                yield from _wrong_side(metric, f"task.further_metrics.{name}", own, key)
                continue
            near = get_close_matches(name, task.further_metrics, n=1)
            yield RecipeIssue(
                key,
                "must be the name of a metric of task.further_metrics: "
                f"{listed([*task.further_metrics]) or 'none is there'}. Got {name!r}."
                + (f" Did you mean {near[0]}?" if near else ""),
            )

    def _quantization_aware_issues(self) -> Iterator[RecipeIssue]:
        """Whether there is a file in 8 bits that rounds as quantization-aware epochs do."""
        epochs, quantize = self.recover.quantization_aware, self.quantize
        if epochs and quantize.mode != "static":
            yield RecipeIssue(
                ("recover", "quantization_aware"),
                "must be 0 unless quantize.mode is static: these epochs are trained with the "
                f"ranges that it measures. Got {epochs} with quantize.mode = {quantize.mode}. "
                "Write quantize: static, or leave it out.",
            )
        if epochs and not quantize.per_channel:
            yield RecipeIssue(
                ("quantize", "per_channel"),
                "must be true where recover.quantization_aware is given: with one scale for all "
                "outputs, a batch norm that is folded into the weights changes how they round. "
                f"Got false with recover.quantization_aware = {epochs}.",
            )
        if epochs and quantize.weight_update == "obs":
            yield RecipeIssue(
                ("quantize", "weight_update"),
                "must be none, or left out, where recover.quantization_aware is given: these "
                "epochs are trained with weights at their nearest steps. Got obs with "
                f"recover.quantization_aware = {epochs}.",
            )

    def _gradient_issues(self) -> Iterator[RecipeIssue]:
        """Whether there are steps for numbers of gradients that grow with sparsity."""
        counts = self.calibrate.counts
        if len(counts) > 1 and self.prune.uses_gradients and self.prune.steps == 1:
            yield RecipeIssue(
                ("calibrate", "num_gradients"),
                "must be one number where prune.steps is 1: all gradients are those of the dense "
                f"model. Got a mapping of {len(counts)}. Write {counts[0]}.",
            )

    def _loss_issues(self) -> Iterator[RecipeIssue]:
        """Whether a loss is there where one is read."""
        if self.task.loss == "none":
            learns = self.prune.uses_gradients or self.prune.method == "magnitude"
            if learns and self.calibrate.labels is True:
                text = "must be model where task.loss is none. Got true."
                yield RecipeIssue(("calibrate", "labels"), text)
            if self._epochs and self.recover.needs_labels:
                text = (
                    "must be given, with weight 1, where the model is trained and task.loss none."
                )
                yield RecipeIssue(("recover", "distill"), text)

    def _recovery_split(self) -> Iterator[RecipeIssue]:
        """Whether there are samples to train on."""
        splits = getattr(self.data, "splits", None)
        keys = {
            "recover.epochs": self.recover.epochs,
            "prune.epochs_between": self.prune.epochs_between,
            "recover.loop": self.recover.loop,
        }
        trained = next((f"{key} = {epochs}" for key, epochs in keys.items() if epochs), None)
        key = ("data", "splits", "recovery")
        if self.recover.split == "calibration":
            default = splits and type(splits).model_fields["recovery"].default
            if splits is not None and splits.recovery != default:
                yield RecipeIssue(
                    key,
                    "must be left out where recover.split is calibration, which reads no other. "
                    f"Got {splits.recovery.model_dump(exclude_none=True)}.",
                )
        elif trained and splits is not None and splits.recovery is None:
            yield RecipeIssue(
                key,
                "must be given where recover.epochs or prune.epochs_between > 0, or recover.loop "
                "is given. "
                f"Got {trained} and no recovery split. Add it, or set recover.split: calibration.",
            )

    @property
    def trains(self) -> bool:
        """Whether the model is trained."""
        return self._epochs > 0 or self.recover.loop is not None

    @property
    def _epochs(self) -> int:
        """Passes of our own training; a loop of the user's has its own loss."""
        return self.recover.epochs + self.prune.epochs_between

    def _unwritten_artifact(self) -> Iterator[RecipeIssue]:
        """Whether the file that ships is one that the recipe's other keys write."""
        artifact = self.validate_.artifact
        if artifact in [ONNX_FILES[name] for name in IN_8_BITS] and not self.quantize.is_on:
            text = f"must not be in 8 bits where quantize.mode is off. Got {artifact}."
            yield RecipeIssue(("validate", "artifact"), text)
        with_kernels = {ONNX_FILES[name] for name in WITH_KERNELS.values()}
        if artifact in with_kernels and self.export.sparse_kernels == "off":
            plain = " or ".join(ONNX_FILES[name] for name in WITH_KERNELS)
            yield RecipeIssue(
                ("validate", "artifact"),
                f"must be {plain} where export.sparse_kernels is off, which writes no other. "
                f"Got {artifact}.",
            )

    @property
    def artifact(self) -> str:
        """The file that ships: what the recipe names, or its default."""
        plain = ONNX_FILES[INT8 if self.quantize.is_on else SPARSE]
        return self.validate_.artifact or plain

    @model_validator(mode="before")
    @classmethod
    def _opens_lengths(cls, recipe: Any) -> Any:
        return with_open_lengths(recipe)

    @model_validator(mode="after")
    def _keeps_its_source(self, info: ValidationInfo) -> "Recipe":
        if isinstance(info.context, RecipeSource):
            self._source = info.context
        return self


def _wrong_side(
    metric: MetricSection, section: str, gates: MetricGates, key: KeyPath
) -> Iterator[RecipeIssue]:
    """Whether a gate bounds a metric on the side where files are good.

    Args:
        metric: Has a direction.
        section: Where it stands.
        gates: Those on it.
        key: Where they stand.
    """
    useless, other = "max_metric", "min_metric"
    if metric.direction == "minimize":
        useless, other = other, useless
    value = getattr(gates, useless)
    if value is not None:
        yield RecipeIssue(
            (*key, useless),
            f"must be left out where {section}.direction is {metric.direction}: it would stop good "
            f"models. Got {value:g}. Set {other}.",
        )
