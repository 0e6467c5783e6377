"""The sections of a recipe on the files that ship, what is measured of them, and the gates."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from onnx.defs import onnx_opset_version
from pydantic import BeforeValidator, Field

from mfac_compress.pipeline.file_names import ONNX_FILES, REFERENCES
from mfac_compress.pipeline.recipe.section import (
    Count,
    Index,
    NoSwitch,
    Number,
    Positive,
    Section,
    SectionError,
    Share,
    Text,
    Threads,
    duplicates,
)
from mfac_compress.pipeline.recipe.source import RecipeIssue, RecipeSource
from mfac_compress.pipeline.recipe.task_schema import MOST_METRICS, MetricName

_SHIPPED = tuple(file for name, file in ONNX_FILES.items() if name not in REFERENCES)

# YAML reads `off` as false.
_OFF_IS_A_WORD = BeforeValidator(lambda value: "off" if value is False else value)


def _axis(number: Any) -> int:
    if str(number).isdecimal() and 1 <= int(number) <= _MOST_AXES:
        return int(number)
    text = f"must be the number of an axis, 1 to {_MOST_AXES} (0 is the batch). Got {number!r}."
    raise SectionError((RecipeIssue((), text),))


_MOST_AXES = 64  # of a tensor in PyTorch
Axis = Annotated[int, BeforeValidator(_axis)]


class ExportSection(Section):
    """The ONNX files."""

    opset: Annotated[int, Field(ge=18), NoSwitch] = 18
    """Version of the ONNX operators."""
    dynamic_batch: bool = True
    """Leave the batch size open. Otherwise it is `validate.batch_size`."""
    input_name: Text = "input"
    """Name of the graph's input where there is one; several have the keys of the dict, or the names
    of forward's parameters."""
    output_name: Text = "output"
    """Name of the graph's output where there is one; several have the keys of the dict, or the
    number in a tuple behind this name."""
    dynamic_axes: dict[Text, dict[Axis, Text]] = Field(default_factory=dict)
    """Names of further open axes, by input and number of the axis: `{input_ids: {1: sequence}}`.
    Axes of the same name have the same length."""
    remove_dead: bool = True
    """Cut channels that are always the same, or that nothing reads, out of `model.onnx`, which
    computes the same without them."""
    round_to: Count = 16
    """Layers with that many outputs or more keep some dead ones, so that their number stays a
    multiple: ONNX Runtime computes channels in groups of 16."""
    sparse_kernels: Annotated[Literal["auto", "off"], _OFF_IS_A_WORD] = "auto"
    """`auto`: where the sparse kernels are built and measure faster, write `model.sparse.onnx` for
    them, too, and `model.int8.sparse.onnx` with `quantize`. The plain files are always written."""

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
    """How latency is measured: all files in turn, each opened anew up to 20 times."""

    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 16)
    """Samples of one call."""
    threads: Annotated[tuple[Threads, ...], Field(min_length=1)] = (1,)
    """Threads of ONNX Runtime."""
    lengths: dict[Text, Annotated[tuple[Count, ...], Field(min_length=1)]] = Field({})
    """Lengths of open axes beside the batch, by the axis's name in `export.dynamic_axes`
    (`{sequence: [16, 128]}`): each is measured with each batch size. Inputs are validation samples
    cut or repeated to it. Without it, they have their own length."""
    warmup: Index = 2
    """Calls of each file that are not timed, each time it is opened; at least one."""
    runs: Annotated[int, Field(ge=6), NoSwitch] = 40
    """Timed runs of each file. Six is the fewest that give a 95% interval of the median."""

    def issues(self, source: RecipeSource) -> Iterator[RecipeIssue]:
        yield from duplicates("batch_sizes", self.batch_sizes)
        yield from duplicates("threads", self.threads)
        for name, lengths in self.lengths.items():
            for issue in duplicates(name, lengths):
                yield replace(issue, key=("lengths", *issue.key))


class MetricGates(Section):
    """What a metric of the release must meet. A gate that is not set is not applied."""

    max_metric_drop: Number | None = None
    """Most that the metric may get worse from dense to sparse, in the metric's own unit (0.01 of
    accuracy is one point)."""
    min_metric: Number | None = None
    """Least that the sparse file's metric may be, where more is better: the lower end of its own
    interval must pass."""
    max_metric: Number | None = None
    """Most that the sparse file's metric may be, where less is better: the upper end of its own
    interval must pass."""

    @property
    def judge_a_metric(self) -> bool:
        """Whether one of them is set."""
        return any(getattr(self, name) is not None for name in MetricGates.model_fields)


class GatesSection(MetricGates):
    """What the release must meet. A gate that is not set is not applied."""

    confidence: Annotated[float, Field(ge=0.5, le=0.999999), NoSwitch] | Literal["none"] = 0.95
    """Of the intervals of the metric and its drop: their worse ends must pass at this level (0.95,
    not 0.05); `none` compares the point estimates."""
    further_metrics: Annotated[dict[MetricName, MetricGates], Field(max_length=MOST_METRICS)] = (
        Field(default_factory=dict)
    )
    """The same gates on metrics of `task.further_metrics`, by their names: `{error:
    {max_metric_drop: 0.05}}`. Each interval has the confidence for itself, not all together."""
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
    """Largest absolute difference between the outputs of PyTorch and ONNX Runtime. Not of files in
    8 bits, which round: they are judged by the metric."""

    @property
    def judge_metrics(self) -> bool:
        """Whether a gate is on any metric."""
        return any(each.judge_a_metric for each in (self, *self.further_metrics.values()))


class ValidateSection(Section):
    """What is measured in ONNX Runtime on the file that ships."""

    artifact: Literal[_SHIPPED] | None = None
    """The file that ships: the gates apply to it, and those on the metric and on zeros to every
    other file of the pruned model as well. `model.sparse.onnx` and `model.int8.sparse.onnx` need
    the sparse kernels wherever they run; the run ends with an error if the one named here was not
    written. Default: `model.onnx`, or `model.int8.onnx` where `quantize.mode` is not `off`."""
    batch_size: Count = 256
    """Samples of one call when the metric is measured."""
    latency: LatencySection | None = LatencySection()
    """`null`: not measured."""
    gates: GatesSection = GatesSection()
