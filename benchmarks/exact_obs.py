"""CPU seconds of ExactOBS on all layers of a model, beside the authors' code on the same matrices.

    python benchmarks/exact_obs.py RECIPE MODEL [--images 1000] [--public FOLDER] [--rounds 2]

FOLDER holds trueobs.py and quant.py of https://github.com/IST-DASLab/OBC. Use one thread. Both get
the same H and weights, layer by layer and in turn. The authors' code keeps all weights of each row
after each removal; ours the costs, from which a mask is chosen, and the weights under it are found
in the end. What is compared beside the seconds is the squared error of each layer, at 70% sparsity
(2:4: 50%). Prints a line for each layer and a last line of JSON.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfac_compress.mfac.batch import call
from mfac_compress.mfac.layerwise.exact_obs import unit_costs
from mfac_compress.mfac.layerwise.masked_solve import masked_least_squares
from mfac_compress.mfac.selection import select
from mfac_compress.mfac.units import NM, Block, Pattern, Unstructured
from mfac_compress.pipeline.inputs.load import Inputs, load_inputs
from mfac_compress.pipeline.recipe.file import load_recipe

SPARSITY = 0.7
PATTERNS = {
    "single": Unstructured(),
    "4 inputs": Block(4, axis=1),
    "4 outputs": Block(4, axis=0),
    "2:4": NM(2, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--public")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()
    inputs = load_inputs(load_recipe(arguments.recipe, arguments.overrides), arguments.model)
    public = None if arguments.public is None else _public_code(arguments.public)
    totals: dict[str, float] = {}
    for name, layer, H in layer_matrices(inputs, arguments.images):
        for pattern in arguments.patterns:
            if not _divides(PATTERNS[pattern], layer.weight):
                continue
            methods = {"ours": lambda W, p=pattern, H=H: ours(W, H, PATTERNS[p])}
            if public is not None and pattern != "4 outputs":
                methods["public"] = lambda _, p=pattern, H=H, m=layer: public(m, H, p)
            line = compare(layer.weight.detach(), H, methods, arguments.rounds)
            for key, value in line.items():
                totals[f"{pattern}, {key}"] = totals.get(f"{pattern}, {key}", 0.0) + value
            print(json.dumps({"layer": name, "pattern": pattern, **_rounded(line)}), flush=True)
    print(json.dumps({"threads": torch.get_num_threads(), **_rounded(totals)}))


def compare(
    weight: Tensor, H: Tensor, methods: dict[str, Callable[[Tensor], Tensor]], rounds: int
) -> dict[str, float]:
    """Return the least CPU seconds of each method in turn, and its squared error."""
    result = {}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.process_time()
            pruned = method(weight)
            seconds = time.process_time() - start
            change = (pruned - weight).flatten(1).double()
            result[f"{name} seconds"] = min(seconds, result.get(f"{name} seconds", seconds))
            result[f"{name} error"] = ((change @ H) * change).sum().item()
    return result


def ours(weight: Tensor, H: Tensor, pattern: Pattern) -> Tensor:
    """Choose the units over all rows, then find the best weights under the mask."""
    sparsity = pattern.sparsity if isinstance(pattern, NM) else SPARSITY
    layout, units = pattern.resolve({"w": tuple(weight.shape)}, sparsity)
    unit = layout.unflatten(units.of_weight)["w"].flatten(1)
    W = weight.flatten(1)
    weights, moments, numbers = {"w": W[None]}, {"w": H[None]}, {"w": unit[None]}
    costs = unit_costs(weights, moments, numbers, units, units.removed())
    mask = select(costs, units, units.removed(), torch.ones(layout.size, dtype=torch.bool))
    keep = layout.unflatten(mask)["w"].flatten(1)
    return masked_least_squares(W, H, keep, ridge=1e-6).view(weight.shape)


def _public_code(folder: str) -> Callable[[nn.Module, Tensor, str], Tensor]:
    sys.path.insert(0, folder)
    torch.cuda.synchronize = lambda *_: None
    from trueobs import TrueOBS

    def prune(module: nn.Module, H: Tensor, pattern: str) -> Tensor:
        solver = TrueOBS(copy.deepcopy(module))
        solver.H = 2 * H
        if pattern == "2:4":
            solver.nmprune(2, 4)
            return solver.layer.weight.data
        if pattern == "single":
            solver.prepare_unstr()
            return solver.prune_unstr([SPARSITY])[0].view(module.weight.shape)
        solver.prepare_blocked(4)
        return solver.prune_blocked([SPARSITY])[0].view(module.weight.shape)

    return prune


@torch.no_grad()
def layer_matrices(inputs: Inputs, images: int) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield each layer that is pruned, and the mean of its inputs' products. Float64 ``[k, k]``."""
    module = inputs.model.module.eval()
    names = {t.name.removesuffix(".weight") for t in inputs.targets.layout}
    layers = {name: layer for name, layer in module.named_modules() if name in names}
    sums: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        x = x.reshape(-1, x.shape[-1])
        sums[name] = sums.get(name, 0) + (x.T @ x).double() / images

    hooks = [
        layer.register_forward_pre_hook(lambda m, x, name=name: add(name, m, x[0]))
        for name, layer in layers.items()
    ]
    seen = 0
    for x, _ in inputs.data.calibration.batches(100):
        call(module, x)
        seen += len(x)
        if seen >= images:
            break
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        yield name, layer, sums[name]


def _divides(pattern: Pattern, weight: Tensor) -> bool:
    if isinstance(pattern, NM):
        return weight.shape[1] % pattern.m == 0
    return not isinstance(pattern, Block) or weight.shape[pattern.axis] % pattern.size == 0


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in values.items()}


if __name__ == "__main__":
    main()
