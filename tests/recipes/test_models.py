"""The shipped models are what their recipes say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mfac_compress.pipeline.inputs.data import load_data
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.inputs.task import load_task
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import ArraysData, DigitsData, ModelSection, TaskSection

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = Path(__file__).parents[3] / "shared" / "data"


def accuracy(module, split, indices=None):
    with torch.no_grad():
        parts = [(module(x), y) for x, y in split.batches(250, indices=indices)]
    outputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return np.mean(load_task(TaskSection(), folder=RECIPES).metric.evaluate(outputs, targets))


@pytest.mark.parametrize(
    ("factory", "weights", "expected"),
    [
        ("digits_convnet.py:digits_convnet", "digits", 0.9849),
        ("vit_digits.py:vit_digits", "vit-digits", 0.9598),
    ],
)
def test_a_net_of_digits_has_its_accuracy(factory, weights, expected):
    section = ModelSection(factory=f"models/{factory}")
    model = load_model(RECIPES / "models" / f"{weights}.safetensors", section, folder=RECIPES)
    data = load_data(DigitsData(source="digits"), folder=RECIPES, needs_recovery=False)
    assert accuracy(model.module, data.validation) == pytest.approx(expected, abs=0.004)


def test_resnet20_has_the_parameters_of_the_checkpoint():
    from mfac_compress.pipeline.inputs.callables import resolve_callable

    build = resolve_callable("models/resnet_cifar.py:resnet20", key="model.factory", folder=RECIPES)
    model = build(num_classes=7)
    assert sum(p.numel() for p in build().parameters()) == 269_722
    assert "layer3.2.bn2.running_var" in model.state_dict()
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 and the checkpoint in ../shared/data")
def test_resnet20_recognises_real_images():
    splits = {
        "calibration": {"path": f"{REAL}/cifar10_train20k.npz", "rows": [0, 100]},
        "validation": {"path": f"{REAL}/cifar10_test.npz", "rows": [0, 2000]},
    }
    section = ArraysData.model_validate(
        {
            "source": "arrays",
            "layout": "NHWC",
            "divide_by": 255,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "splits": splits,
        }
    )
    model = load_model(
        REAL / "weights" / "resnet20_cifar10_akamaster.safetensors",
        ModelSection(factory="models/resnet_cifar.py:resnet20"),
        folder=RECIPES,
    )
    data = load_data(section, folder=RECIPES, needs_recovery=False)
    assert accuracy(model.module, data.validation) == pytest.approx(0.917, abs=0.015)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs MNIST and the checkpoint in ../shared/data")
@pytest.mark.parametrize(
    ("recipe", "weights", "expected"),
    [
        ("mlp-mnist", "mlp_mnist_woodfisher", 0.9397),
        ("resnet8-cifar10", "resnet8_cifar10_mlperftiny", 0.8721),
        ("dscnn-kws", "dscnn_kws_mlperftiny", 0.916),
        ("dscnn-kws-70", "dscnn_kws_mlperftiny", 0.916),
    ],
)
def test_a_recipe_reads_its_data_as_the_checkpoint_wants(recipe, weights, expected):
    recipe = load_recipe(RECIPES / f"{recipe}.yaml")
    model = load_model(REAL / "weights" / f"{weights}.safetensors", recipe.model, folder=RECIPES)
    section = recipe.data.model_copy(update={"folder": str(REAL)})
    data = load_data(section, folder=RECIPES, needs_recovery=False)
    some = np.arange(0, len(data.validation), max(1, len(data.validation) // 2000))
    assert accuracy(model.module, data.validation, some) == pytest.approx(expected, abs=0.012)
