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
    "data with a name too long": ["data.splits.validation.path must be a file or folder that"],
    "factory with a name too long": ["model.factory must name a file that exists"],
    "opset of the future": ["export.opset must be at most", "Got 99", "recipe.yaml:"],
    "input named as a tensor": ["export.input_name", "Got '0.weight'"],
    "metric of other arguments": ["task.metric must be a function of (outputs, targets)"],
    "truncated model": ["It may be cut off"],
    "missing factory": ["model.factory must name something in net.py", "has no 'network'"],
    "factory of another model": ["must fit the model of model.factory", "of another shape"],
    "factory that fails": ["model.factory must build the model", "unexpected keyword argument"],
    "refused pickle": ["needs arbitrary unpickling", "--trust-pickle", "torch.export.save"],
}


SETTINGS = {
    "unknown key": ("prune", {"sparcity": 0.5}),
    "wrong type": ("prune.sparsity", "most"),
    "unmatched layer": ("prune.exclude", ["4.weight"]),
    "overlapping rows": ("data.splits.recovery.rows", [100, 300]),
    "missing data": ("data.splits.validation.path", "none.npz"),
    "data with a name too long": ("data.splits.validation.path", "n" * 300),
    "missing factory": ("model.factory", "net.py:network"),
    "factory with a name too long": ("model.factory", f"{'n' * 300}.py:net"),
    "factory of another model": ("model.kwargs", {"width": 8}),
    "factory that fails": ("model.kwargs", {"wdith": 8}),
    "opset of the future": ("export", {"opset": 99}),
    "input named as a tensor": ("export", {"input_name": "0.weight"}),
    "metric of other arguments": ("task", {"metric": "own.py:metric"}),
}


def _prepare(project, wrong):
    """Put one wrong thing into a sound project; returns model file and recipe."""
    model = project.model
    if wrong in SETTINGS:
        path, value = SETTINGS[wrong]
        *sections, key = path.split(".")
        section = project.recipe
        for name in sections:
            section = section[name]
        section[key] = value
    if wrong == "overlapping content":
        with np.load(project.folder / "train.npz") as data:
            np.savez(project.folder / "copy.npz", x=data["x"][:50], y=data["y"][:50])
        project.recipe["data"]["splits"]["validation"]["path"] = "copy.npz"
    elif wrong == "metric of other arguments":
        (project.folder / "own.py").write_text("def metric(outputs):\n    return 0.0\n")
    elif wrong == "missing model":
        model = project.folder / "none.pt"
    elif wrong == "truncated model":
        model = project.folder / "net.pt"
        torch.save({"0.weight": torch.zeros(1000)}, model)
        model.write_bytes(model.read_bytes()[:2000])
    elif wrong == "refused pickle":
        model = project.folder / "module.pt"
        torch.save(nn.Linear(6, 3), model)
    return model


@pytest.mark.parametrize("wrong", FRAGMENTS)
@pytest.mark.parametrize("before", ["no directory", "an earlier run"])
def test_what_is_wrong_is_said_and_leaves_nothing(project, wrong, before):
    results = [project.output / "report.json", project.output / "model.onnx"]
    if before == "an earlier run":
        (project.output / ".cache" / "prune").mkdir(parents=True)
        (project.output / ".cache" / "run.lock").touch()
        for result in results:
            result.write_text("of the earlier run")
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
    assert left == {path: content for path, content in there.items() if path not in results}


def test_a_few_samples_many_times_do_not_judge(project):
    with np.load(project.folder / "test.npz") as data:
        rows = np.arange(20).repeat(50)
        np.savez(project.folder / "few.npz", x=data["x"][rows], y=data["y"][rows])
    project.recipe["data"]["splits"]["validation"]["path"] = "few.npz"

    result = project.run("--dry-run")

    assert result.exit_code == 2
    assert "data.splits.validation" in result.output
    assert "20 distinct ones of 1,000" in result.output
    points = project.run("--dry-run", "--set", "validate.gates.confidence=none")
    assert points.exit_code == 0, points.output
