"""Optimizers compared on the recovery of a pruned model: accuracy by epoch and by second.

    python benchmarks/recovery.py RECIPE MODEL --work FOLDER [--plot recovery.svg]

The model is pruned once, as the recipe says, into FOLDER. Each optimizer trains it from there with
the recipe's epochs, batch size and schedule; its learning rate is the one of three that has the
lowest loss, after one epoch, on the held-out calibration samples. The accuracy is that of the whole
validation split, in PyTorch. Seconds are CPU time of training only; use one thread. Prints a line
for each run and a last line of JSON.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mfac_compress.pipeline.errors import StageError
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.inputs.model_file import set_training
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Recipe
from mfac_compress.pipeline.run.cache import StageCache
from mfac_compress.pipeline.run.runner import StageClock, run_stages
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.schedule import plan_stages
from mfac_compress.pipeline.stages.divergence import Divergence
from mfac_compress.pipeline.stages.recover import objective_of
from mfac_compress.pipeline.stages.training import Training

MFAC = ["recover.optimizer=mfac", "recover.momentum=0.9"]
OPTIMIZERS = {
    "SGD": ["recover.optimizer=sgd", "recover.momentum=0.9"],
    "AdamW": ["recover.optimizer=adamw"],
    **{f"M-FAC, m={m}": [*MFAC, f"recover.window.num_gradients={m}"] for m in (32, 128, 512)},
}
LEARNING_RATES = {"sgd": (0.1, 0.03, 0.01), "adamw": (3e-3, 1e-3, 3e-4), "mfac": (1e-2, 3e-3, 1e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("--work", type=Path, required=True, help="folder for the pruned model")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--plot", type=Path, help="picture to write; needs the extra `benchmarks`")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()

    def loaded(*overrides: str) -> Loaded:
        recipe = load_recipe(arguments.recipe, [*arguments.overrides, *overrides])
        return Loaded(recipe, load_inputs(recipe, arguments.model))

    pruned = pruned_model(loaded(), arguments.work)
    start = pruned_accuracy(loaded(), pruned)
    print(json.dumps({"pruned": start}), flush=True)
    results = []
    for name in arguments.optimizers:
        own = OPTIMIZERS[name]
        lr = best_learning_rate(lambda *more, own=own: loaded(*own, *more), pruned)
        judged = train_and_judge(loaded(*own, f"recover.lr={lr}"), pruned)
        results.append({"optimizer": name, "lr": lr, **judged})
        print(json.dumps(results[-1]), flush=True)
    if arguments.plot:
        draw(start, results, arguments.plot)
    print(json.dumps({"threads": torch.get_num_threads(), "pruned": start, "results": results}))


class Loaded(NamedTuple):
    """A recipe and what it starts from."""

    recipe: Recipe
    inputs: Inputs

    def pruned(self, folder: Path) -> nn.Module:
        """Return a copy of the model with the pruned weights."""
        return State.load(folder).into(self.inputs.model.copy())

    def train(self, module: nn.Module, folder: Path) -> Iterator[float]:
        """Train the module, and yield the loss of each epoch."""
        training = Training(
            module,
            State.load(folder).masks,
            self.recipe.recover,
            self.inputs.training,
            objective_of(self.inputs.model, self.recipe.recover, self.inputs.calibration),
            self.recipe.run.seed,
        )
        return training.run(Ranks(), Progress())


def pruned_model(loaded: Loaded, work: Path) -> Path:
    """Return the folder with the pruned weights and masks, found or created."""
    stages = [
        stage for stage in plan_stages(*loaded) if stage.name.startswith(("calibrate", "prune-"))
    ]
    code, clock = loaded.inputs.code, StageClock(Progress())
    cache_of = partial(StageCache, work, code=code)
    return run_stages(stages, cache_of, code, Ranks(), clock)[stages[-1].name].folder


def pruned_accuracy(loaded: Loaded, pruned: Path) -> float:
    return accuracy(loaded, loaded.pruned(pruned))


def best_learning_rate(load: Callable[..., Loaded], pruned: Path) -> float:
    """Return the rate that ends nearest to the dense model's outputs after one epoch.

    On held-out calibration samples, without validation data.
    """
    divergences = {}
    for lr in LEARNING_RATES[load().recipe.recover.optimizer]:
        loaded = load("recover.epochs=1", f"recover.lr={lr}")
        module = loaded.pruned(pruned)
        try:
            list(loaded.train(module, pruned))
        except (StageError, ValueError) as error:  # too high a rate diverges
            print(json.dumps({"lr": lr, "failed": str(error)}), flush=True)
            continue
        inputs = loaded.inputs
        divergences[lr] = Divergence(inputs.model.module, inputs.calibration).of(module)
    print(json.dumps({"divergence": divergences}), flush=True)
    return min(divergences, key=divergences.__getitem__)


def train_and_judge(loaded: Loaded, pruned: Path) -> dict[str, object]:
    """Return accuracy and CPU seconds after each epoch."""
    module = loaded.pruned(pruned)
    epochs, seconds, accuracies = loaded.train(module, pruned), 0.0, []
    by_second = []
    start = time.process_time()
    for _ in epochs:
        seconds += time.process_time() - start
        by_second.append(round(seconds, 1))
        accuracies.append(accuracy(loaded, module))
        start = time.process_time()
    return {"accuracy": accuracies, "seconds": by_second}


@torch.no_grad()
def accuracy(loaded: Loaded, module: nn.Module) -> float:
    """Return the accuracy on the validation split, in percent; the module is not changed."""
    judged, inputs = copy.deepcopy(module), loaded.inputs
    set_training(judged, False)
    parts = [(judged(x.to(inputs.device)).cpu(), y) for x, y in inputs.data.validation.batches(250)]
    outputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return round(100 * float(np.mean(inputs.task.metric.evaluate(outputs, targets))), 2)


def draw(start: float, results: list[dict], path: Path) -> None:
    """Plot accuracy by epoch and by second."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for result in results:
        accuracies = [start, *result["accuracy"]]
        label = f"{result['optimizer']}, lr {result['lr']:g}"
        axes[0].plot(range(len(accuracies)), accuracies, marker="o", label=label)
        axes[1].plot([0, *result["seconds"]], accuracies, marker="o", label=label)
    axes[0].set(xlabel="epoch", ylabel="validation accuracy in %")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set(xlabel="processor seconds of training")
    axes[1].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
