"""What does not fit together is told before anything is computed or written."""

import pytest


def _refused(project, message, *arguments):
    for more in ((), ("--dry-run",)):
        result = project.run(*arguments, *more)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not project.output.exists()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("forward(self, x, z): return x", "The model must take one tensor"),
        ("forward(self, x): return {'logits': x}", "The model must return one tensor"),
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


def test_a_loss_that_does_not_take_the_targets(project):
    _refused(project, "task.loss mse needs outputs and targets", "--set", "task.loss=mse")


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


def test_one_sample_has_no_interval_for_a_metric_of_real_values(project):
    (project.folder / "metric.py").write_text("def error(o, t): return o.abs().mean(1)\n")
    project.recipe["task"] = {"metric": "metric.py:error"}
    project.recipe["data"]["splits"]["validation"]["rows"] = [0, 1]
    _refused(project, "2 validation samples or more")
