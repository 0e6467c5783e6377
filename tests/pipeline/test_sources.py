"""Whole runs from the command line on each source of data, and with metrics of the user's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

DATASETS = """
import numpy as np
import torch

def splits(folder):
    parts = {"calibration": ("train", 0), "recovery": ("train", 200), "validation": ("test", 0)}
    result = {}
    for name, (file, start) in parts.items():
        with np.load(f"{folder}/{file}.npz") as data:
            x, y = (torch.from_numpy(data[key][start : start + 200]) for key in "xy")
        result[name] = torch.utils.data.TensorDataset(x, y)
    return result
"""

METRICS = """
import torch

def negative_log_likelihood(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

def worst_class(outputs, targets):
    right = (outputs.argmax(1) == targets).double()
    return min(right[targets == c].mean().item() for c in targets.unique())
"""

CONVNET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)
    )
"""


def _report(project):
    return json.loads((project.output / "report.json").read_text())


def test_own_torch_datasets_give_the_run_that_their_arrays_give(project):
    assert project.run("-q").exit_code == 0
    of_arrays = _report(project)
    (project.folder / "own.py").write_text(DATASETS)
    project.recipe["data"] = {"factory": "own.py:splits", "kwargs": {"folder": str(project.folder)}}

    result = project.run("-q")

    assert result.exit_code == 0, result.output
    for name, measured in _report(project)["variants"].items():
        assert measured["metric"] == of_arrays["variants"][name]["metric"]
        assert measured["audit"] == of_arrays["variants"][name]["audit"]


def test_folders_of_images(project):
    rng = np.random.default_rng(0)
    for split, count in [("calibration", 12), ("recovery", 8), ("validation", 10)]:
        for channel, name in enumerate(["blue", "red"]):
            folder = project.folder / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, size=(12, 15, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * channel] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (project.folder / "net.py").write_text(CONVNET)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)
    )
    torch.save(net.state_dict(), project.folder / "net.pt")
    splits = ("calibration", "recovery", "validation")
    project.recipe |= {
        "data": {
            "source": "image_folder",
            "resize": 12,
            "crop": 10,
            "augment": {"crop": 1, "flip": True},
            "splits": {name: {"path": name} for name in splits},
        },
        "calibrate": {"num_gradients": 8, "samples_per_gradient": 2},
    }
    project.recipe["validate"]["gates"] = {"min_sparsity": 0.5, "max_parity_error": 1e-3}

    result = project.run("-q", model=project.folder / "net.pt")

    assert result.exit_code == 0, result.output
    assert _report(project)["metric"]["samples"] == 20


@pytest.mark.parametrize("metric", ["negative_log_likelihood", "worst_class"])
def test_an_own_metric_is_judged_by_its_interval(project, metric):
    """Per sample, where less is better; and of the whole set."""
    (project.folder / "own.py").write_text(METRICS)
    direction = "minimize" if metric == "negative_log_likelihood" else "maximize"
    project.recipe["task"] = {"metric": f"own.py:{metric}", "direction": direction}
    project.recipe["prune"]["sparsity"] = 0.9
    project.recipe["recover"] = {"epochs": 0}
    project.recipe["validate"]["gates"] = {"max_metric_drop": -1.0}

    assert project.run("-q").exit_code == 1

    report = _report(project)
    dense, metric = (report["variants"][name]["metric"] for name in ("dense", "sparse"))
    drop, (low, high) = metric["drop"], metric["drop_interval"]
    sign = 1 if direction == "maximize" else -1
    assert drop == pytest.approx(sign * (dense["value"] - metric["value"]))
    assert low <= drop <= high
    assert low < high
    assert report["gates"][0]["measured"] == high
