"""Each kind of wrong recipe, model or data: exit code 2, a message that names it, nothing on disk.

What the messages say in full is tested beside the code that says it.
"""

import numpy as np
import pytest
import torch
from torch import nn

FRAGMENTS = {
    "unknown key": ["prune.sparcity is not a key", "Did you mean prune.sparsity?", "recipe.yaml:"],
    "wrong type": ["prune.sparsity must be a number", "Got 'most'", "recipe.yaml:"],
    "unmatched layer": ["prune.exclude[0]", "matches nothing", "Did you mean 3.weight"],
    "overlapping rows": ["data.splits.recovery.rows must not share samples", "rows 100 to 200"],
    "overlapping content": ["data splits must be disjoint", "row 0 of train.npz"],
    "missing recipe": ["The recipe must be a file that exists"],
    "missing model": ["The model must be a file that exists"],
    "missing data": ["data.splits.validation.path must be a file or folder that exists"],
    "truncated model": ["It may be cut off"],
    "missing factory": ["model.factory must name something in net.py", "has no 'network'"],
    "factory of another model": ["must fit the model of model.factory", "of another shape"],
    "factory that fails": ["model.factory must build the model", "unexpected keyword argument"],
    "refused pickle": ["needs arbitrary unpickling", "--trust-pickle", "torch.export.save"],
}


def _prepare(project, wrong):
    """Put one wrong thing into a sound project; returns model file and recipe."""
    recipe, model = project.recipe, project.model
    splits = recipe["data"]["splits"]
    if wrong == "unknown key":
        recipe["prune"] = {"sparcity": 0.5}
    elif wrong == "wrong type":
        recipe["prune"]["sparsity"] = "most"
    elif wrong == "unmatched layer":
        recipe["prune"]["exclude"] = ["4.weight"]
    elif wrong == "overlapping rows":
        splits["recovery"]["rows"] = [100, 300]
    elif wrong == "overlapping content":
        with np.load(project.folder / "train.npz") as data:
            np.savez(project.folder / "copy.npz", x=data["x"][:50], y=data["y"][:50])
        splits["validation"]["path"] = "copy.npz"
    elif wrong == "missing model":
        model = project.folder / "none.pt"
    elif wrong == "missing data":
        splits["validation"]["path"] = "none.npz"
    elif wrong == "truncated model":
        model = project.folder / "net.pt"
        torch.save({"0.weight": torch.zeros(1000)}, model)
        model.write_bytes(model.read_bytes()[:2000])
    elif wrong == "missing factory":
        recipe["model"]["factory"] = "net.py:network"
    elif wrong == "factory of another model":
        recipe["model"]["kwargs"] = {"width": 8}
    elif wrong == "factory that fails":
        recipe["model"]["kwargs"] = {"wdith": 8}
    elif wrong == "refused pickle":
        model = project.folder / "module.pt"
        torch.save(nn.Linear(6, 3), model)
    return model


@pytest.mark.parametrize("wrong", FRAGMENTS)
@pytest.mark.parametrize("before", ["no directory", "an earlier run"])
def test_what_is_wrong_is_said_and_leaves_nothing(project, wrong, before):
    if before == "an earlier run":
        (project.output / ".cache").mkdir(parents=True)
        (project.output / "report.json").write_text("of the earlier run")
    model = _prepare(project, wrong)
    if wrong == "missing recipe":
        project.write_recipe = lambda: project.folder / "none.yaml"

    def files():
        everything = project.folder.rglob("*")
        return {p: p.is_file() and p.read_bytes() for p in everything if p.name != "recipe.yaml"}

    there = files()
    result = project.run(model=model)

    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("error: ")
    for fragment in FRAGMENTS[wrong]:
        assert fragment in result.output
    left = {path: content for path, content in files().items() if "__pycache__" not in path.parts}
    assert left == there
