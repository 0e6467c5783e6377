"""The report: what ``report.json`` holds. A contract with whoever reads it in a pipeline."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mfac_compress.export import Machine
from mfac_compress.pipeline.stages.accelerate import Kernels
from mfac_compress.pipeline.stages.metric import Metric
from mfac_compress.pipeline.stages.quantize import Quantised
from mfac_compress.pipeline.stages.reconstruct import Reconstructed
from mfac_compress.pipeline.stages.recover import Recovered
from mfac_compress.pipeline.stages.validate import Measured
from mfac_compress.pipeline.verdict.gates import Gate
from mfac_compress.pipeline.verdict.inputs import Code, Data, Sparsity


class Report(BaseModel):
    """A run's verdict and all that it was measured from.

    Its parts are the objects in which the stages keep what they measured.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True
    )

    schema_: Literal[4] = Field(4, alias="schema")
    """Version of this contract."""
    verdict: Literal["pass", "fail", "none"]
    """``pass`` where every gate passed; ``none`` where the recipe sets no gate."""
    gates: tuple[Gate, ...]
    """Those that the recipe sets, with what came of each."""
    warnings: tuple[str, ...] = ()
    """What whoever trusts the verdict should know; no reason to fail."""
    judged: str
    """Name of the variant to which all gates apply. Those on the metric, zeros and parity apply to
    every other file of the pruned model as well."""
    metric: Metric
    """What the files are judged by."""
    further_metrics: dict[str, Metric] = {}
    """What else they are judged by, by the names of ``task.further_metrics``."""
    variants: dict[str, Measured]
    """What was measured on each file, by the variant's name: ``dense``, with which the others are
    compared, ``sparse``, and ``sparse+kernels`` where there was a candidate; with ``quantize`` also
    ``dense-int8``, ``int8`` and ``int8+kernels``."""
    kernels: dict[str, Kernels]
    """How each variant with sparse operators came about, or why there is none. One that was
    compared and not found faster is among the ``variants``, but not written."""
    sparsity: Sparsity
    """What was to be removed, and from how much."""
    machine: Machine
    """Where latency was measured."""
    reconstruction: dict[str, Reconstructed]
    """What was repaired layer by layer, by the stage's name: ``reconstruct-00`` after the first
    pruning step ..., ``reconstruct`` after the last; empty where nothing was."""
    recovery: Recovered
    """What came of the training after the last pruning step."""
    quantisation: Quantised | None = None
    """How the files in 8 bits came about; null where there are none."""
    data: Data
    """The samples that the run used."""
    code: Code
    """The user's code that the results depend on."""

    @property
    def shipped(self) -> Measured:
        """What was measured on the file to which the gates apply."""
        return self.variants[self.judged]
