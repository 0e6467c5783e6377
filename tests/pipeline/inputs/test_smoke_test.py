"""What does not fit together is reported before anything is computed or written."""

import pytest


def _refused(project, message, *arguments):
    result = project.run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not project.output.exists()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("forward(self, x, z): return x", "The model must take the inputs of the data"),
        (
            "forward(self, x): return {'logits': x}",
            "task.loss cross_entropy needs one tensor as output",
        ),
        ("forward(self, x): return super().forward(x[:, :5])", "raised RuntimeError"),
    ],
    ids=["two inputs", "a dict", "another width"],
)
def test_a_model_that_does_not_take_the_data(project, forward, message):
    source = (project.folder / "net.py").read_text()
    own = f"class Own(nn.Sequential):\n    def {forward}\n"
    source = source.replace("return nn.Sequential", "return Own")
    (project.folder / "net.py").write_text(f"from torch import nn\n{own}{source}")
    _refused(project, message)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_loss_that_does_not_take_the_targets(project, more):
    needs = "task.loss mse needs outputs and targets"
    _refused(project, needs, "--set", "task.loss=mse", *more)


def test_a_metric_that_does_not_take_the_outputs(project):
    (project.folder / "loss.py").write_text("def loss(outputs, targets): return outputs.mean()\n")
    project.recipe["task"] = {"loss": "loss.py:loss"}
    for name in ("train", "test"):
        _as_regression(project.folder / f"{name}.npz")
    _refused(project, "task.metric accuracy needs integer targets")


def _as_regression(path):
    import numpy as np

    with np.load(path) as data:
        x = data["x"]
    np.savez(path, x=x, y=x[:, :1])


def test_one_sample_has_no_interval_for_a_metric_of_real_values(project):
    (project.folder / "metric.py").write_text("def error(o, t): return o.abs().mean(1)\n")
    project.recipe["task"] = {"metric": "metric.py:error"}
    project.recipe["data"]["splits"]["validation"]["rows"] = [0, 1]
    _refused(project, "2 validation samples or more")


NETS = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))

class Auxiliary(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        hidden = F.relu(self.first(x))
        return (self.second(hidden), self.head(hidden)) if self.training else self.second(hidden)

class Unused(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

class NotALeaf(Net):
    def __init__(self):
        super().__init__()
        self.double = self.first.weight * 2

class NoStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, affine=False, track_running_stats=False)

    def forward(self, x):
        return super().forward(self.norm(x))

class Centred(Net):
    def forward(self, x):
        return super().forward(x - x.mean(0))

class Random(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))

class Writes(Net):
    def forward(self, x):
        return super().forward(x.mul_(2))

class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()

class Overwritten(Net):
    def forward(self, x):
        hidden = torch.sigmoid(self.first(x))
        hidden += 1
        return self.second(hidden)

class Branch(Net):
    def forward(self, x):
        return super().forward(x if x.abs().sum() > 0 else -x)

class Standardised(Net):
    def forward(self, x):
        weight = self.first.weight - self.first.weight.mean(1, keepdim=True)
        return self.second(F.relu(F.linear(x, weight)))

class Table(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1000))

class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)

class Fails(Net):
    def forward(self, x):
        assert not self.training, "evaluate only"
        return super().forward(x)
"""


def _with_net(project, name, *, epochs=0):
    """Let the recipe build a net of the above, with weights of its own."""
    from safetensors.torch import save_file

    (project.folder / "nets.py").write_text(NETS)
    namespace = {"__name__": "nets"}
    exec(NETS, namespace)  # the test's own text
    save_file(namespace[name]().state_dict(), project.model)
    project.recipe["model"] = {"factory": f"nets.py:{name}"}
    project.recipe["recover"] = {"epochs": epochs}
    project.recipe["validate"]["gates"] = {}
    return project


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoStatistics", "must not depend on the other samples of the batch"),
        ("NoStatistics", "norm is a batch norm without running statistics"),
        ("Centred", "must not depend on the other samples of the batch"),
        ("Random", "outputs must be the same each time"),
        ("Writes", "must not change its inputs"),
        ("NotALeaf", "double is a tensor that was computed from parameters"),
        ("Detached", "The loss must depend on the tensors to prune"),
        ("Overwritten", "modified by an inplace operation"),
        ("Branch", "torch.where instead of if"),
    ],
)
def test_a_model_that_a_stage_could_not_use(project, name, message):
    _refused(_with_net(project, name), message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Auxiliary", "must return in training mode what it returns in evaluation mode"),
        ("Auxiliary", "). Is it an auxiliary head?"),
        ("Fails", "evaluate only"),
    ],
)
def test_a_model_that_cannot_be_trained_as_it_is_used(project, name, message):
    _refused(_with_net(project, name, epochs=1), message)


@pytest.mark.parametrize("method", ["loop", "vmap", "magnitude"])
@pytest.mark.parametrize("name", ["Auxiliary", "Unused"])
def test_a_head_that_takes_no_part_is_left_out(project, name, method):
    _with_net(project, name)
    if method == "magnitude":
        project.recipe["prune"]["method"] = "magnitude"
    else:
        project.recipe["calibrate"]["gradients"] = method
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.5}

    plan = " ".join(project.run("--dry-run").output.split())
    result = project.run()

    assert (
        "head.weight takes no part in the " + ("outputs" if method == "magnitude" else "loss")
        in plan
    )
    assert result.exit_code == 0, result.output


def test_a_tensor_whose_zeros_would_be_lost_is_left_out_by_name(project):
    result = _with_net(project, "Standardised").run("--dry-run")
    assert result.exit_code == 0, result.output
    assert "first.weight its zeros would be lost" in " ".join(result.output.split())


def test_the_plan_says_how_much_of_the_model_can_be_pruned(project):
    output = _with_net(project, "Net").run("--dry-run").output
    assert "whole model: 144 of all 163 parameters can be pruned (88.34%), 44.17%" in output
    assert "warning" not in output
    output = _with_net(project, "Table").run("--dry-run").output
    assert "whole model: 144 of all 1,163 parameters can be pruned (12.38%)" in output
    assert "warning: less than 20% of the model can be pruned" in output


def test_frozen_parameters_are_neither_pruned_nor_trained(project):
    from safetensors.torch import load_file

    _with_net(project, "Frozen", epochs=1)
    project.recipe["recover"] |= {"weight_decay": 0.1, "lr": 0.1}
    before = load_file(project.model)

    plan = project.run("--dry-run").output
    result = project.run()

    assert result.exit_code == 0, result.output
    assert "frozen: requires_grad is False" in plan
    after = load_file(project.output / "model.safetensors")
    for name, value in before.items():
        assert name.startswith("first") == bool((after[name] == value).all()), name


@pytest.mark.parametrize("split", ["calibration", "recovery", "validation"])
def test_a_class_that_the_model_does_not_have_is_found_in_every_split(project, split):
    import numpy as np

    _with_net(project, "Net", epochs=1)
    place = project.recipe["data"]["splits"][split]
    with np.load(project.folder / place["path"]) as data:
        x, y = data["x"], data["y"]
    y[place.get("rows", [0, len(y)])[1] - 1] = 3
    np.savez(project.folder / "other.npz", x=x, y=y)
    place["path"] = "other.npz"
    _refused(project, "needs classes 0..2")


def test_labels_of_calibration_are_not_looked_at_where_the_model_gives_them(project):
    import numpy as np

    _with_net(project, "Net")
    with np.load(project.folder / "train.npz") as data:
        np.savez(project.folder / "bare.npz", x=data["x"])
    project.recipe["data"]["splits"]["calibration"] = {"path": "bare.npz", "rows": [0, 200]}
    project.recipe["calibrate"]["labels"] = "model"
    result = project.run("--dry-run")
    assert result.exit_code == 0, result.output


def test_vmap_that_cannot_run_the_model_is_refused(project):
    (project.folder / "loss.py").write_text(
        "from torch.nn.functional import cross_entropy\n"
        "def loss(outputs, targets):\n"
        "    return cross_entropy(outputs, targets) * (2 if outputs.sum() > 0 else 1)\n"
    )
    _with_net(project, "Net")
    project.recipe["task"] = {"loss": "loss.py:loss"}
    project.recipe["calibrate"]["gradients"] = "vmap"
    _refused(project, "vmap must be able to run model and loss")


def test_the_model_and_the_random_state_are_as_before(project):
    import torch

    from mfac_compress.pipeline.inputs.load import load_inputs
    from mfac_compress.pipeline.inputs.smoke_test import smoke_test
    from mfac_compress.pipeline.recipe.file import load_recipe

    recipe = load_recipe(project.write_recipe())
    inputs = load_inputs(recipe, project.model)
    module = inputs.model.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()

    unused = smoke_test(
        recipe, inputs.model, inputs.targets.layout, inputs.data, inputs.calibration
    )
    assert unused == {}

    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert not any(part.training for part in module.modules())


def test_whole_numbers_that_are_stored_as_floats_are_no_classes(project):
    _change(project, y=lambda y: y.astype("f4"))
    _refused(project, "They are whole numbers: save them as integers")


def test_any_class_that_the_model_does_not_have(project):
    _change(project, y=lambda y: [*y[:-1], 3])
    _refused(project, "needs classes 0..2, the model has 3 outputs. Got class 3")


def test_integers_for_a_model_of_floats(project):
    _change(project, x=lambda x: (x * 100).astype("i8"))
    _refused(project, "If it takes floats, set data.dtype to float32")


def _change(project, **changes):
    import numpy as np

    for name in ("train", "test"):
        with np.load(project.folder / f"{name}.npz") as data:
            changed = {key: changes.get(key, lambda array: array)(data[key]) for key in data}
        np.savez(project.folder / f"{name}.npz", **changed)
