"""The report: what ``report.json`` holds. A contract with whoever reads it in a pipeline."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GateResult(_Part):
    """One gate of the recipe, and what came of it."""

    name: str
    """The gate's key in ``validate.gates``."""
    threshold: float
    measured: float | None
    """What is compared with the threshold. null: not measured, so the gate fails."""
    passed: bool
    reason: str
    """The comparison in words."""


class MetricResult(_Part):
    """The metric of the dense and the sparse ONNX file on the same validation samples."""

    name: str
    direction: Literal["maximize", "minimize"]
    dense: float
    sparse: float
    drop: float
    """How much worse the sparse file is, in the metric's unit; negative where it is better."""
    interval: tuple[float, float] | None
    """Two-sided paired interval of ``drop``. null: the samples show nothing; ``method`` says why,
    and the gate fails."""
    confidence: float
    """Of all three intervals."""
    samples: int
    dense_interval: tuple[float, float] | None = None
    """Two-sided interval of ``dense``."""
    sparse_interval: tuple[float, float] | None = None
    """Two-sided interval of ``sparse``."""
    method: str = ""
    """How the intervals were made, or why there are none."""
    range: tuple[float, float] | None = None
    """Least and greatest value of the metric. null: not declared."""
    assumed_range: tuple[float, float] | None = None
    """Range taken from the values met, where none is declared and the intervals need one."""
    spread: float | None = None
    """Standard deviation of one sample's share in ``drop``."""
    reach: float | None = None
    """Most that one sample is taken to be able to change the metric by, times ``samples``."""
    resamples_left_out: int = 0
    """Of 2,000, on which a metric of the whole set had no value."""
    chance: float | None = None
    """What a model that knows nothing reaches: by the most frequent class, or with the targets
    shuffled. null: not known."""
    better_than_chance: bool | None = None
    """Whether the dense file is shown to be better than ``chance``."""


class LeftOutResult(_Part):
    """A parameter that was not pruned."""

    reason: str
    size: int


class SparsityResult(_Part):
    """Removed weights, counted in the ONNX file."""

    target: float
    """Asked for, over all matched weights."""
    onnx: float | None
    """Share of the matched weights that the masks remove and that are zero in the ONNX file. null:
    a tensor was not found there."""
    weights: int
    """Number of matched weights."""
    parameters: int
    """Number of all parameters of the model, tied ones once."""
    model: float | None = None
    """Share of all parameters of the model that the masks remove and that are zero in the ONNX
    file. null where ``onnx`` is."""
    left_out: dict[str, LeftOutResult] = Field(default_factory=dict)
    """Parameters that were not pruned, by name."""


class SpreadResult(_Part):
    """Median and distance between the quartles, in milliseconds a call."""

    median_ms: float
    iqr_ms: float


class LatencyResult(_Part):
    """Dense against sparse, at one batch size and number of threads."""

    batch_size: int
    threads: int
    rounds: int | None = None
    """How often both files were opened anew; each round is one value of ``ratio``'s interval. null:
    the report is of an older version, which had no such field."""
    runs: int
    """Pairs of timed runs in all rounds, dense and sparse in turn."""
    calls_per_run: int
    dense_wall: SpreadResult
    sparse_wall: SpreadResult
    dense_cpu: SpreadResult | None
    """CPU time of the calling thread. null at more than one thread."""
    sparse_cpu: SpreadResult | None
    clock: Literal["thread CPU", "wall"]
    """The clock of ``ratio``."""
    ratio: float
    """Sparse / dense, median of the rounds, in each of the pairs."""
    interval: tuple[float, float]
    """95% interval of ``ratio``, over the rounds."""
    finding: Literal["faster", "slower", "no speed-up", "too noisy to judge"] | None = None
    """What the interval shows. Where it includes 1: "no speed-up", or "too noisy to judge" if half
    its width is more than 10% of ``ratio``. null: of an older version, as ``rounds``."""
    verdict: str
    """The finding in words."""


class MachineResult(_Part):
    """Where latency was measured."""

    cpu: str
    cores: int
    load_1min: float
    """Runnable programs during the last minute, on average; above ``cores`` wall times lie."""


class FileSizeResult(_Part):
    """Bytes of an ONNX file with its external data."""

    raw_bytes: int
    compressed_bytes: int
    """With zstandard, level 9."""


class SizeResult(_Part):
    """Sizes of both ONNX files."""

    dense: FileSizeResult
    sparse: FileSizeResult
    ratio: float | None
    """Compressed sparse / compressed dense. null: not finite."""


class TensorAuditResult(_Part):
    """Zeros of one pruned tensor, at the places that its mask removes."""

    name: str
    size: int
    mask_zeros: int
    onnx_zeros: int | None
    """Of these, zero in the ONNX file. null: the tensor was not found."""
    negative_zeros: int | None
    """Zeros with a minus sign in the ONNX file."""
    optimized_zeros: int | None
    """Of the masked, zero after ONNX Runtime's own optimisation. null: not found."""
    intact: bool


class FlopsResult(_Part):
    """Multiplications in theory, of all convolutions and matrix products in one call. Not time."""

    batch_size: int
    dense: int
    sparse: int
    """Those by weights that are not zero."""
    ratio: float
    """Sparse / dense."""


class LayerTimeResult(_Part):
    """One layer alone, in milliseconds a call."""

    batch_size: int
    threads: int
    dense_ms: float
    """In stock ONNX Runtime."""
    sparse_ms: float
    """As a sparse operator."""
    ratio: float
    """Sparse / dense, median of the pairs."""


class LayerSpeedResult(_Part):
    """A Conv, Gemm or MatMul of the ONNX file."""

    name: str
    """Of the node."""
    operator: str
    weight: str | None
    """Name of the tensor. null where it is not constant."""
    shape: tuple[int, ...]
    sparsity: float | None
    """Zeros in the file. null where the weight is not constant, or packed."""
    macs: int | None
    """Multiplications in one call. null where they are not known."""
    kept_macs: int | None
    """Of these, those by weights that are not zero."""
    block: int | None
    """Outputs that share their inputs, in the sparse operator. null: it was not replaced."""
    times: tuple[LayerTimeResult, ...]
    reason: str
    """Why it was replaced, or not."""


class SparseKernelsResult(_Part):
    """The file with sparse operators, ``model.sparse.onnx``."""

    state: Literal["used", "no gain", "too noisy", "not built", "off"]
    """``used`` where the file was written: each ``latency`` below shows it faster. ``too noisy``:
    the machine was too busy to tell, so it was not."""
    reason: str
    layers: tuple[LayerSpeedResult, ...]
    library_bytes: int | None
    """Of the shared library that the file needs. null, as all below, where there is no file."""
    metric: MetricResult | None
    parity_error: float | None
    """As ``parity_error`` of the report; null also where an output was not finite."""
    size_bytes: SizeResult | None
    latency: tuple[LatencyResult, ...]
    """The dense file in stock ONNX Runtime against this file with the library. Not empty either
    where a file was compared and not found faster."""


class Report(_Part):
    """A run's verdict and all that it was measured from."""

    schema_version: Literal[1] = 1
    verdict: Literal["pass", "fail", "none"]
    """``pass`` where every gate passed; ``none`` where the recipe sets no gate."""
    gates: tuple[GateResult, ...]
    warnings: tuple[str, ...] = ()
    """What whoever trusts the verdict should know; no reason to fail."""
    artifact: Literal["model.onnx", "model.sparse.onnx"]
    """The file to which the gates apply."""
    metric: MetricResult
    """This and what follows is of the plain ``model.onnx``; see ``sparse_kernels`` for the other.
    """
    sparsity: SparsityResult
    latency: tuple[LatencyResult, ...]
    """Both files in stock ONNX Runtime."""
    flops: FlopsResult
    sparse_kernels: SparseKernelsResult
    machine: MachineResult
    size_bytes: SizeResult
    parity_error: float | None
    """Largest absolute difference between PyTorch and ONNX Runtime. null: an output was NaN or
    infinite."""
    audit: tuple[TensorAuditResult, ...]
    recovery: dict[str, Any] = Field(default_factory=dict)
    """Mean training loss by epoch, and what was decided on batch-norm statistics."""
