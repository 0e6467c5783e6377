"""What a run compresses: a module to compute with, and a way to write it as ONNX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mfac_compress.export import Coupling
from mfac_compress.mfac.batch import Tree
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.recipe.schema import ExportSection


@dataclass(frozen=True, eq=False)
class OnnxForm:
    """How a model is to be written as ONNX.

    Args:
        section: The recipe's ``export``.
        split: Of its samples the example is made.
        batch_size: Samples in the example.
    """

    section: ExportSection
    split: Split
    batch_size: int

    @property
    def digest(self) -> list[Any]:
        """Changes where the file may."""
        later = {"sparse_kernels", "remove_dead", "round_to"}
        section = self.section.model_dump(mode="json", exclude=later)
        return [section, self.split.fingerprint, self.batch_size]

    @property
    def example(self) -> Tree:
        """Inputs that the file will take. Each of shape ``[batch_size, ...]``."""
        positions = torch.arange(self.batch_size) % len(self.split)
        return next(self.split.batches(self.batch_size, indices=positions)).inputs


class Model(Protocol):
    """A model as it was given, which writes its own file.

    A checkpoint with its factory, a program of torch.export and a folder of transformers are of one
    class, whose file is made by tracing the module. Another kind of model needs a class with these
    members and a line in ``load_model``: for an ONNX file, ``module`` is made from its graph, and
    ``write`` puts the state's tensors into that file.
    """

    module: nn.Module
    """On the run's device, in evaluation mode, with float32 parameters. Nobody changes it."""
    digest: str
    """Changes where the file, what the recipe says of it, or a tensor does."""
    origin: Mapping[str, Any]
    """How the file was read, for the manifest."""
    stored: Mapping[str, tuple[str, bool]]
    """Name and orientation (True: transposed) of tensors that the file has under a name of its
    own."""
    outputs: Sequence[str] | None
    """Names of the file's outputs that the module returns; None for all."""
    keeps_graph: bool
    """Whether the file's graph is the user's own, which changes only where that is asked for."""
    opset: int | None
    """Version of the ONNX operators of the user's own file; None where `export.opset` says it."""
    heads: frozenset[str]
    """Parameters that are pruned only where ``prune.include`` names them."""

    def copy(self) -> nn.Module:
        """A copy of the module, on its device."""

    def check(self, form: OnnxForm) -> None:
        """Check that the module computes what the file does, and that the recipe fits it.

        Args:
            form: How the model is to be written.

        Raises:
            InputError: If not.
        """

    def lost_zeros(self, names: Sequence[str], form: OnnxForm) -> dict[str, str]:
        """Try to write the model, before the work.

        Args:
            names: Parameters that are to be pruned.
            form: How it is written.

        Returns:
            Name to reason, of the parameters whose zeros the file would not hold.

        Raises:
            InputError: If it cannot be written so, or the file computes something else.
        """

    def coupling(self, form: OnnxForm) -> Coupling:
        """The channels of the dense file that can go, with the weights that go with each.

        Args:
            form: How it is written.

        Raises:
            InputError: If it cannot be written so.
        """

    def write(
        self,
        state: Mapping[str, Tensor] | None,
        path: Path,
        form: OnnxForm,
        metadata: Mapping[str, str],
    ) -> None:
        """Write the model as ONNX.

        Args:
            state: Parameters and buffers by name, on any device; None for the model's own.
            path: The file, in a folder that exists.
            form: How it is written.
            metadata: Written into it.

        Raises:
            InputError: If it cannot be written so.
        """
