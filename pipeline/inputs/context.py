"""What every stage of one run shares."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from mfac_compress.pipeline.inputs.code_sources import CodeSources
from mfac_compress.pipeline.inputs.data import DataSplits
from mfac_compress.pipeline.inputs.layers import PruneTargets
from mfac_compress.pipeline.inputs.model_file import LoadedModel
from mfac_compress.pipeline.inputs.task import Task
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class RunContext:
    """The inputs of a run, loaded and checked. Stages read it and never change it."""

    recipe: Recipe
    model: LoadedModel
    data: DataSplits
    task: Task
    targets: PruneTargets
    device: torch.device
    progress: Progress
    ranks: Ranks = field(default_factory=Ranks)
    code: CodeSources = field(default_factory=CodeSources)
    """The user's code, as it was loaded before the first stage."""
    window_folder: Path | None = None
    """Where gradients are kept that the memory budget does not hold; None for in memory."""
    folded: Mapping[str, str] = field(default_factory=dict)
    """Weights that were computed from others and are plain now, and by what they were computed."""
    dense_graph: ir.Model | None = None
    """The dense model as exported when the inputs were checked; None where it was not."""

    @property
    def seed(self) -> int:
        """Seed of the calibration draws."""
        own = self.recipe.calibrate.seed
        return self.recipe.run.seed if own is None else own

    def fresh_module(self) -> nn.Module:
        """A copy of the dense model, on the run's device."""
        with warnings.catch_warnings():
            # PyTorch warns of its own ways when it copies the module of an exported program.
            warnings.simplefilter("ignore", FutureWarning)
            return copy.deepcopy(self.model.module)

    def parameters_of(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of ``module`` that are pruned, in the order of the flat vector."""
        parameters = dict(module.named_parameters())
        return {target.name: parameters[target.name] for target in self.targets.matched}
