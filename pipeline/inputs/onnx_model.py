"""A model that exists only as an ONNX file: computed with in PyTorch, written into that file."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mfac_compress.export import Coupling, find_coupling, lost_in_file
from mfac_compress.export.from_onnx import (
    Converted,
    Source,
    Stored,
    check_outputs,
    convert,
    named_as_module,
)
from mfac_compress.mfac.batch import map_tensors
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.foreign_files import is_onnx
from mfac_compress.pipeline.inputs.model import OnnxForm
from mfac_compress.pipeline.quoting import listed, shortened

_SAMPLES = 8
_MOST_TEXT = 2000
"""Characters of what a library says of a file; it may quote names of any length."""
_OWN = ("opset", "input_name", "output_name")
"""Keys of ``export`` that say what such a file says itself."""

__all__ = ["OnnxModel", "is_onnx", "read_onnx"]


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A :class:`~mfac_compress.pipeline.inputs.model.Model` that is an ONNX file.

    Its dense file is that file. The pruned one has other numbers in the tensors that have changed,
    and every other byte of it, so no metadata is added.
    """

    module: nn.Module
    digest: str
    source: Source
    converted: Converted
    origin: Mapping[str, Any] = field(default_factory=dict)
    keeps_graph: bool = True
    heads: frozenset[str] = frozenset()

    @property
    def stored(self) -> Mapping[str, Stored]:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        return self.converted.stored

    @property
    def opset(self) -> int | None:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        return self.source.graph.opset_imports.get("")

    @property
    def outputs(self) -> Sequence[str]:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        return self.converted.module.outputs

    def copy(self) -> nn.Module:
        """A copy of the module, on its device."""
        return copy.deepcopy(self.module)

    def check(self, form: OnnxForm) -> None:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        self._check_form(form)
        rows = max(_SAMPLES, self.converted.batch or 0)
        inputs = map_tensors(lambda tensor: tensor[:rows], form.example)
        try:
            check_outputs(self.converted, self.source, inputs)
        except Exception as error:
            # ONNX Runtime has exception types of its own, and a damaged graph fails in any way.
            reason = str(error) if isinstance(error, ValueError) else describe(error)
            raise InputError(
                f"{self.source.path} must compute in PyTorch what it computes in ONNX Runtime, on "
                f"{rows} calibration samples. {shortened(reason, _MOST_TEXT)}"
            ) from error

    def lost_zeros(self, names: Sequence[str], form: OnnxForm) -> dict[str, str]:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        try:
            return lost_in_file(
                self.copy().cpu(),
                form.example,
                names,
                write=lambda module, path: self._write(module.state_dict(), path),
                stored=self.stored,
                outputs=self.outputs,
            )
        except ValueError as error:
            raise InputError(str(error)) from error

    def coupling(self, form: OnnxForm) -> Coupling:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        return find_coupling(named_as_module(self.source.graph, self.stored))

    def write(
        self,
        state: Mapping[str, Tensor] | None,
        path: Path,
        form: OnnxForm,
        metadata: Mapping[str, str],
    ) -> None:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`. The metadata is not written."""
        del form, metadata
        try:
            self._write({} if state is None else state, path)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _write(self, state: Mapping[str, Tensor], path: Path) -> None:
        dense = self.module.state_dict()
        changed = {}
        for name, tensor in state.items():
            stored, now = self.stored.get(name), tensor.detach().cpu()
            if stored is not None and not now.equal(dense[name].cpu()):
                array = now.numpy() + np.float32(0)  # -0 becomes 0: mixed signs compress badly
                changed[stored.name] = array.T if stored.turned else array
        self.source.write(path, changed)

    def _check_form(self, form: OnnxForm) -> None:
        """Check what the recipe says of the file.

        Raises:
            InputError: If a key would have no effect, or the file takes other batches.
        """
        section, path, batch = form.section, self.source.path, self.converted.batch
        needless = [f"export.{key}" for key in _OWN if key in section.model_fields_set]
        if needless:
            raise InputError(
                f"{listed(needless)} must be left out: {path} is an ONNX file, which is written as "
                "it is."
            )
        if batch is None and not section.dynamic_batch:
            raise InputError(
                f"export.dynamic_batch must be true: {path} takes any number of samples, and "
                "stays so. Got false."
            )
        if batch is not None and (section.dynamic_batch or form.batch_size != batch):
            raise InputError(
                f"export.dynamic_batch must be false and validate.batch_size {batch}: {path} "
                f"takes {batch} samples at once, and stays so. Got "
                f"{str(section.dynamic_batch).lower()} and {form.batch_size}."
            )
        inputs = {each.name: each.shape for each in self.converted.module.inputs}
        for name, axes in section.dynamic_axes.items():
            if name not in inputs:
                raise InputError(
                    f"export.dynamic_axes must name inputs of {path}: {listed([*inputs])}. Got "
                    f"{name!r}."
                )
            shape = inputs[name]
            closed = [a for a in axes if shape and (a >= len(shape) or shape[a] is not None)]
            if closed:
                raise InputError(
                    f"export.dynamic_axes must name axes that {path} leaves open. Got axis "
                    f"{closed[0]} of {name!r}, whose shape is {[s or 'open' for s in shape]}."
                )


def read_onnx(path: Path, content: bytes, output: str | int | None) -> tuple[Source, Converted]:
    """Read an ONNX file as a module.

    Args:
        path: The file, beside which its external data is.
        content: Its bytes.
        output: The recipe's ``model.output``: what only other outputs depend on is not converted.
    Returns:
        The file and the module.
    Raises:
        InputError: If it cannot be read, or an operator cannot be converted.
    """
    try:
        source = Source.read(path, content)
    except Exception as error:
        reason = str(error) if type(error) is ValueError else describe(error)
        raise InputError(shortened(reason, _MOST_TEXT)) from error
    names = [value.name for value in source.graph.graph.outputs]
    chosen = [output] if len(names) > 1 and output is not None else None
    try:
        return source, convert(source.graph, outputs=chosen, writable=source.writable)
    except Exception as error:
        # What nobody thought of, in a file that anybody may have made.
        reason = (
            str(error) if type(error) is ValueError else f"Reading it raised {describe(error)}."
        )
        raise InputError(
            f"{path} must be an ONNX file that PyTorch can compute. {shortened(reason, _MOST_TEXT)}"
        ) from error
