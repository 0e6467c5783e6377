"""What SparseML itself says: run by its own interpreter, with a folder to read from and write to.

``peer.py parse FOLDER`` loads the recipes that ``recipes.json`` names; ``peer.py inverse FOLDER``
inverts the gradients of ``gradients.pt``; ``peer.py prune FOLDER`` prunes the digits' net.
"""

import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")

from sparseml.pytorch.optim import ScheduledModifierManager  # noqa: E402
from sparseml.pytorch.sparsification.pruning import modifier_pruning_mfac as mfac  # noqa: E402
from sparseml.pytorch.sparsification.pruning import modifier_pruning_obs as obs  # noqa: E402


def parse(folder: Path) -> None:
    """Write the modifiers of each recipe, with all values that can be written."""
    read = {}
    for path in json.loads((folder / "recipes.json").read_text()):
        try:
            manager = ScheduledModifierManager.from_yaml(path)
            read[path] = [
                {"name": type(one).__name__, "values": one.props(only_serializable=True)}
                for one in manager.iter_modifiers()
            ]
        except Exception as error:
            read[path] = {"error": f"{type(error).__name__}: {error}"[:300]}
    text = json.dumps(read, default=str)
    (folder / "parsed.json").write_text(text)


def inverse(folder: Path) -> None:
    """Write diagonal and product of each inverse, and the CPU seconds that the diagonal took."""
    given = torch.load(folder / "gradients.pt", weights_only=True)
    results = {}
    for name, case in given.items():
        for build in (_blocks, _empirical) if case["block"] else (_full,):
            # The inverse is worked out in the place of the gradients.
            gradients = case["gradients"].clone()
            begin = time.process_time()
            found = build(gradients, case["block"], case["damping"])
            diagonal = found.diag()
            seconds = time.process_time() - begin
            kept = {"diagonal": diagonal, "product": found.mul(case["x"])} if case["keep"] else {}
            results[f"{name}/{type(found).__name__}"] = {"seconds": seconds, **kept}
    torch.save(results, folder / "inverses.pt")


def _full(gradients: torch.Tensor, side: None, damping: float) -> Any:
    return mfac.FisherInverseFast(gradients, damp=damping)


def _blocks(gradients: torch.Tensor, side: int, damping: float) -> Any:
    return mfac.FisherInverseFastBlock(gradients, side, damp=damping)


def _empirical(gradients: torch.Tensor, side: int, damping: float) -> Any:
    m, d = gradients.shape
    found = obs.EmpiricalBlockFisherInverse(m, side, d, damping, torch.device("cpu"))
    for gradient in gradients:
        found.add_grad(gradient)
    return found


def prune(folder: Path) -> None:
    """Prune a net in one shot, as ``recipe.yaml`` says, and write its weights."""
    said = json.loads((folder / "prune.json").read_text())
    spec = importlib.util.spec_from_file_location("net", said["factory"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.digits_convnet()
    net.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
    with np.load(folder / "data.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])

    def batches(sampler: dict | None) -> Iterator[tuple]:
        size = (sampler or {}).get("batch_size", 8)
        while True:
            order = torch.randperm(len(x))
            for start in range(0, len(x) - size, size):
                rows = order[start : start + size]
                yield [x[rows]], {}, y[rows]

    torch.manual_seed(0)
    manager = ScheduledModifierManager.from_yaml(str(folder / "recipe.yaml"))
    manager.apply(
        net,
        finalize=True,
        grad_sampler={
            "data_loader_builder": batches,
            "loss_function": torch.nn.functional.cross_entropy,
        },
    )
    torch.save(net.state_dict(), folder / "pruned.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"parse": parse, "inverse": inverse, "prune": prune}[sys.argv[1]](Path(sys.argv[2]))
