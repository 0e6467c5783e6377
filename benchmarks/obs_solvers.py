"""Accuracy of each pruning method, on a real model without any training.

    python benchmarks/obs_solvers.py RECIPE MODEL [--methods ...] [--seeds 0 1 2]

One run goes through all sparsities in 16 steps (gradients and inverse recomputed in each), so that
each sparsity is reached in at most 16 steps. Every choice, also that of batch-norm statistics, is
made on calibration data; the accuracy is that of the whole validation split, in PyTorch. Seconds
are CPU time of pruning only; use one thread. Prints a line for each run and a last line of JSON.
"""

import argparse
import copy
import json
import time

import numpy as np
import torch

from mfac_compress.pipeline.inputs.data import augment_of
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.stages.batchnorm import recalibrate_batchnorm
from mfac_compress.pipeline.stages.calibrate import FisherSource
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.prune import Pruner, Removal

STEPS = {0.5: 3, 0.6: 3, 0.7: 3, 0.8: 3, 0.9: 4}
SEQUENTIAL, FIRST_ORDER = "prune.selection=sequential", "prune.first_order=true"
PLAIN = ["prune.selection=independent", "prune.first_order=false"]
METHODS = {
    "magnitude": [*PLAIN, "prune.method=magnitude", "prune.update=none"],
    "single": [*PLAIN, "prune.update=single"],
    "joint": PLAIN,
    "joint, sequential": [*PLAIN, SEQUENTIAL],
    "joint, first order": [*PLAIN, FIRST_ORDER],
    "joint, sequential, first order": [SEQUENTIAL, FIRST_ORDER],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        for method in arguments.methods:
            overrides = ["recover.epochs=0", f"run.seed={seed}", *METHODS[method]]
            recipe = load_recipe(arguments.recipe, [*overrides, *arguments.overrides])
            inputs = load_inputs(recipe, arguments.model)
            result = {"method": method, "seed": seed, **run(recipe, inputs)}
            print(json.dumps(result), flush=True)
            results.append(result)
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}))


def run(recipe: Recipe, inputs: Inputs) -> dict[str, object]:
    """Return the accuracy at each sparsity, and the seconds needed to reach it."""
    pruner = Pruner(inputs.model, inputs.targets.layout)
    step, kept, start = 0, 1.0, time.process_time()
    accuracies, pruning = {}, 0.0
    for sparsity, steps in STEPS.items():
        densities = kept * ((1 - sparsity) / kept) ** (np.arange(1, steps + 1) / steps)
        for density in densities:
            one_step(recipe, inputs, pruner, 1 - density, step)
            step += 1
        kept = 1 - sparsity
        pruning += time.process_time() - start
        accuracies[f"{sparsity:.0%}"] = round(100 * accuracy(recipe, inputs, pruner.module), 2)
        accuracies[f"{sparsity:.0%} seconds"] = round(pruning)
        start = time.process_time()
    return accuracies


def one_step(recipe: Recipe, inputs: Inputs, pruner: Pruner, sparsity: float, step: int) -> None:
    """Remove weights up to one sparsity over all tensors together."""
    units = inputs.targets.units
    removed = units.removed(torch.full_like(units.sparsity, sparsity))
    if recipe.prune.method == "magnitude":
        pruner.remove_smallest(units, removed)
        return
    ranks, calibration = Ranks(), inputs.calibration
    source = FisherSource(calibration, inputs.fisher, None, ranks, Progress())
    fisher, _ = source.compute(pruner.module, step, recipe.calibrate.gradients)
    pruner.remove_least_salient(
        fisher,
        units,
        removed,
        Removal.of(recipe),
        Divergence(inputs.model.module, calibration).of,
        ranks,
        slice(None),
    )


@torch.no_grad()
def accuracy(recipe: Recipe, inputs: Inputs, pruned: torch.nn.Module) -> float:
    """Return the accuracy on the validation split, batch-norm statistics chosen as in a run."""
    module = copy.deepcopy(pruned)
    divergence = Divergence(inputs.model.module, inputs.calibration)
    recalibrate_batchnorm(module, divergence, "auto", augment_of(recipe.data))
    parts = [(module(x.to(inputs.device)).cpu(), y) for x, y in inputs.data.validation.batches(250)]
    outputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return float(np.mean(inputs.task.metric.evaluate(outputs, targets)))


if __name__ == "__main__":
    main()
