"""Half of the channels within ResNet blocks: which go, and what makes up for them.

    OMP_NUM_THREADS=1 python benchmarks/channel_pruning.py RECIPE MODEL [--set KEY=VALUE]...

RECIPE prunes channels (`prune.pattern: channels`). All methods remove the same number of channels
of each layer, so that the files need the same multiply-accumulates. No training, no batch-norm
statistics anew. Accuracy is that of all validation samples, in PyTorch. The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mfac_compress.mfac import Pruned, invert, prune, prune_by_magnitude
from mfac_compress.mfac.batch import call
from mfac_compress.mfac.coupled import Channels
from mfac_compress.mfac.layerwise import least_squares
from mfac_compress.mfac.selection import select
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.calibrate import FisherSource

SAMPLES, BATCH, POSITIONS, RIDGE = 1000, 100, 32, 1e-3


def by_l1(inputs: Inputs) -> Tensor:
    """Remove the channels whose filters have the smallest L1 norm (Li et al. 2017). A mask."""
    units, pattern = inputs.targets.units, inputs.targets.pattern
    assert isinstance(pattern, Channels)
    parameters = dict(inputs.model.module.named_parameters())
    of_weight = inputs.targets.layout.unflatten(units.of_weight)
    costs = torch.full((units.count,), torch.inf)
    for channel in pattern.channels:
        name, axis, places = channel.reads[0]
        number = of_weight[name].select(axis, places[0]).flatten()[0]
        norms = (
            parameters[made].detach().index_select(along, torch.tensor(at)).abs().sum()
            for made, along, at in channel.computes
        )
        costs[number] = sum(norms)
    keep = torch.ones(inputs.targets.layout.size, dtype=torch.bool)
    return units.freed(select(costs, units, units.removed(), keep))


def methods(recipe: Recipe, inputs: Inputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, weights and a mask for each way to prune in one step."""
    layout, units = inputs.targets.layout, inputs.targets.units
    weights = layout.flatten(dict(inputs.model.module.named_parameters()))
    mask = by_l1(inputs)
    yield "L1 of filters", weights.masked_fill(~mask, 0), mask
    pruned = prune_by_magnitude(weights, units)
    yield "L2 of readers", pruned.weights, pruned.mask
    progress = Progress()
    with progress.stage("calibrate"):
        source = FisherSource(inputs.calibration, inputs.fisher, None, Ranks(), progress)
        fisher, _ = source.compute(inputs.model.module, 0, recipe.calibrate.gradients)
    inverse = invert(fisher, recipe.fisher.damping)

    def curvature(update: str) -> Pruned:
        return prune(weights, inverse, units, update=update)

    mask_l1 = inverse.joint_update(weights, mask | _only_freed(mask, units))
    yield "L1 of filters, joint update", mask_l1.masked_fill(~mask, 0), mask
    for update, name in (("none", "M-FAC"), ("joint", "M-FAC, joint update")):
        pruned = curvature(update)
        yield name, pruned.weights, pruned.mask


def _only_freed(mask: Tensor, units) -> Tensor:
    """Weights that are gone for free: nothing has to make up for them."""
    left = torch.zeros(units.count, dtype=torch.bool)
    left[units.of_weight[mask]] = True
    return ~mask & left[units.of_weight]


@torch.no_grad()
def accuracy(inputs: Inputs, module: nn.Module) -> float:
    """Share of the validation samples that a module predicts right."""
    right = total = 0
    for x, y in inputs.data.validation.batches(250):
        right += int((call(module, x).argmax(1) == y).sum())
        total += len(y)
    return right / total


def repaired(inputs: Inputs, module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Fit each layer to the dense model's outputs, without labels."""
    drawn = inputs.calibration.drawn_inputs("least squares", SAMPLES, BATCH)
    least_squares(
        module,
        inputs.model.module,
        inputs.layers.graph,
        masks,
        list(drawn),
        positions=POSITIONS,
        ridge=RIDGE,
        seed=0,
    )
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.sets)
    inputs = load_inputs(recipe, arguments.model)
    rows = []
    for name, weights, mask in methods(recipe, inputs):
        module = inputs.model.copy()
        tensors = inputs.targets.layout.unflatten(weights)
        module.load_state_dict({**module.state_dict(), **tensors})
        masks = inputs.targets.layout.unflatten(mask)
        before = accuracy(inputs, module)
        after = accuracy(inputs, repaired(inputs, module, masks))
        rows.append({"method": name, "accuracy": before, "least_squares": after})
        print(f"{name:30s} {before:.4f}, layers repaired: {after:.4f}", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
