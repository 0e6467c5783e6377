"""A model that is written as ONNX by tracing its module."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from mfac_compress.export import Coupling, build_graph, find_coupling, lost_zeros, write_graph
from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.forward import random_state_kept
from mfac_compress.pipeline.inputs.model import OnnxForm
from mfac_compress.pipeline.weights import restore


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A :class:`~mfac_compress.pipeline.inputs.model.Model` that is a module of PyTorch."""

    module: nn.Module
    digest: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    outputs: Sequence[str] | None = None
    keeps_graph: bool = False
    opset: int | None = None
    heads: frozenset[str] = frozenset()
    _dense: dict[OnnxForm, ir.Model] = field(default_factory=dict)
    """The graph that was made when the export was tried: it need not be made again."""

    def copy(self) -> nn.Module:
        """A copy of the module, on its device."""
        with warnings.catch_warnings():
            # PyTorch warns of its own ways when it copies the module of an exported program.
            warnings.simplefilter("ignore", FutureWarning)
            return copy.deepcopy(self.module)

    def check(self, form: OnnxForm) -> None:
        """Nothing: the file is made of the module, and compared with it by :meth:`lost_zeros`."""

    def lost_zeros(self, names: Sequence[str], form: OnnxForm) -> dict[str, str]:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        device = next(self.module.parameters()).device
        try:
            with _named(), random_state_kept(device), user_code():
                graph = self._dense[form] = _graph(self._on_cpu(), form)
                return lost_zeros(
                    self.copy().cpu(),
                    graph,
                    form.example,
                    names,
                    build=lambda pruned: _graph(pruned, form),
                )
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                "export: the model must be exportable to ONNX. The export raised "
                f"{describe(error)}. Run torch.onnx.export(model, (inputs,), dynamo=True) on the "
                "model by itself."
            ) from error

    def coupling(self, form: OnnxForm) -> Coupling:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        with _named():
            if form not in self._dense:
                self._dense[form] = _graph(self._on_cpu(), form)
            return find_coupling(self._dense[form])

    def write(
        self,
        state: Mapping[str, Tensor] | None,
        path: Path,
        form: OnnxForm,
        metadata: Mapping[str, str],
    ) -> None:
        """See :class:`~mfac_compress.pipeline.inputs.model.Model`."""
        with _named():
            if state is not None:
                graph = _graph(restore(self.copy(), state).cpu(), form)
            else:
                graph = self._dense.pop(form, None) or _graph(self._on_cpu(), form)
            write_graph(graph, path, metadata=metadata)

    def _on_cpu(self) -> nn.Module:
        on_cpu = all(parameter.device.type == "cpu" for parameter in self.module.parameters())
        return self.module if on_cpu else self.copy().cpu()


def _graph(module: nn.Module, form: OnnxForm) -> ir.Model:
    section = form.section
    return build_graph(
        module,
        form.example,
        opset=section.opset,
        dynamic_batch=section.dynamic_batch,
        input_name=section.input_name,
        output_name=section.output_name,
        dynamic_axes=section.dynamic_axes,
    )


@contextmanager
def _named() -> Iterator[None]:
    """Name the recipe's section in what export/ says."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"export: {error}") from error
