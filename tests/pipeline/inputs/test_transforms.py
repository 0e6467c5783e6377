"""Random changes by torchvision, or by a function of the user's own.

torchvision is an optional extra: a module with its names stands for it here.
"""

import random
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.inputs.transforms import Transforms, load_transforms
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import Augment
from mfac_compress.pipeline.schedule import plan_stages


class _Transform:
    """As torchvision's: drawn from PyTorch's random numbers, without a generator."""

    def __call__(self, image):
        return self.changed(image) if float(torch.rand(())) < self.p else image


class _Inverted(_Transform):
    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError("p must be a probability")
        self.p = p

    def changed(self, image):
        return 255 - image


class _Brighter(_Transform):
    p = 1.0

    def changed(self, image):
        return image + 1


@pytest.fixture
def vision(monkeypatch):
    """A module in the place of torchvision.transforms.v2."""
    v2 = types.ModuleType("torchvision.transforms.v2")
    v2.Transform, v2.RandomInvert, v2.Brighter = _Transform, _Inverted, _Brighter
    v2.functional, v2.query_size = types.ModuleType("functional"), len
    transforms = types.ModuleType("torchvision.transforms")
    transforms.v2 = v2
    for name, module in [
        ("torchvision", types.ModuleType("torchvision")),
        ("torchvision.transforms", transforms),
        ("torchvision.transforms.v2", v2),
    ]:
        monkeypatch.setitem(sys.modules, name, module)


def load(given, folder=None):
    return load_transforms(Augment(transforms=given), folder=folder)


def images(count=64):
    return torch.arange(count * 12, dtype=torch.int64).remainder(120).view(count, 3, 2, 2).byte()


def changed(transforms, x, seed=0):
    return transforms(x, torch.Generator().manual_seed(seed))


def written(tmp_path, text):
    (tmp_path / "own.py").write_text(f"import random\nimport numpy as np\nimport torch\n{text}")
    return load("own.py:build", tmp_path)


def test_names_and_arguments_make_a_chain_in_their_order(vision):
    found = load([{"RandomInvert": {"p": 1}}, "Brighter"])
    x = images(4)
    assert torch.equal(changed(found, x), 255 - x + 1)
    assert torch.equal(changed(load(["Brighter", {"RandomInvert": {"p": 1.0}}]), x), 255 - (x + 1))


def test_each_image_is_changed_on_its_own_and_a_seed_repeats_it(vision):
    found, x = load(["RandomInvert"]), images()
    once = changed(found, x)
    inverted = [torch.equal(one, 255 - image) for one, image in zip(once, x, strict=True)]
    assert 10 < sum(inverted) < 54
    assert torch.equal(once, changed(found, x))
    assert not torch.equal(once, changed(found, x, seed=1))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(found(x, generator), found(x, generator))  # in the next batch


ALL_KINDS = """
def build():
    def shift(image):
        return image + random.randint(0, 9) + np.random.randint(9) + int(torch.randint(9, ()))
    return shift
"""


def test_random_numbers_of_all_kinds_repeat_and_others_are_left_as_they_were(tmp_path):
    found, x = written(tmp_path, ALL_KINDS), images()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    once = changed(found, x)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert torch.equal(once, changed(found, x))
    assert len({int(shift) for shift in (once - x)[:, 0, 0, 0]}) > 5


def test_it_comes_after_crop_and_flip_and_spoils_no_sample(tmp_path):
    """Crops bring black borders in, so that after them alone all pixels are above 0."""
    found = written(tmp_path, "def build():\n    return lambda image: image.add_(1)\n")
    x = images()
    before = x.clone()
    made = ImageChanges(Augment(crop=2, flip=True), found)
    assert int(made(x, torch.Generator().manual_seed(0)).min()) == 1
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["RandomInvrt"], r"Got 'RandomInvrt'\. Did you mean RandomInvert\?"),
        (["Transform"], "must name transforms of torchvision"),
        (["functional"], "must name transforms of torchvision"),
        (["query_size"], "must name transforms of torchvision"),
        (["__builtins__"], "must name transforms of torchvision"),
        ([{"RandomInvert": {"p": 2}}], r"transforms\.RandomInvert must have .*p must be a prob"),
        ([{"RandomInvert": {"q": 2}}], r"transforms\.RandomInvert must have .*TypeError"),
    ],
)
def test_only_transforms_of_torchvision_have_names(vision, given, message):
    with pytest.raises(InputError, match=message):
        load(given)


@pytest.mark.parametrize("given", [[], [{}], [{"A": {}, "B": {}}], [{"A": 1}], [7], "no colon"])
def test_the_schema_refuses_other_forms(given):
    with pytest.raises(ValueError, match="transforms"):
        Augment(transforms=given)


def test_without_torchvision_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"data\.augment\.transforms needs .*\[vision\]"):
        load(["RandomInvert"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build():\n    return 3\n", "must be a function that returns a transform.*int"),
        ("def build(x):\n    return len\n", r"must be a function of \(\)"),
        ("def build():\n    raise SystemExit(0)\n", "must be a function that returns.*SystemExit"),
        ("import torchvisionn\n", r"must name code that can be imported.*torchvisionn"),
    ],
)
def test_a_factory_that_makes_no_transform_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"data\.augment\.transforms {message}"):
        written(tmp_path, text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("image / 255", "must return a sample like the one .* returned"),
        ("image[:, :1]", "must return a sample like the one"),
        ("image[None]", "must return a sample like the one"),
        ("image.numpy()", "returned ndarray"),
        ("None", "returned NoneType"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("exit(0)", "raised SystemExit"),
    ],
)
def test_what_a_transform_returns_is_checked(tmp_path, body, message):
    found = written(tmp_path, f"def build():\n    return lambda image: {body}\n")
    with pytest.raises(InputError, match=rf"data\.augment\.transforms .*{message}"):
        changed(found, images(2))


def test_numbers_stay_finite():
    endless = Transforms("one", lambda image: image * float("inf"))
    with pytest.raises(InputError, match="finite"):
        changed(endless, torch.ones(1, 3, 2, 2))


def test_those_of_torchvision_are_for_images(vision):
    with pytest.raises(InputError, match=r"needs batches of images.*a function of your own"):
        changed(load(["Brighter"]), torch.ones(4, 9))


@pytest.mark.parametrize("shape", [(4,), (4, 9), (4, 5, 2), (4, 3, 2, 2, 2)])
def test_a_function_of_the_users_own_takes_samples_of_any_shape(tmp_path, shape):
    x = torch.arange(int(np.prod(shape))).view(shape)
    found = written(tmp_path, "def build():\n    return lambda sample: sample + 1\n")
    assert torch.equal(changed(found, x), x + 1)


def test_several_inputs_by_name_are_refused(tmp_path):
    found = written(tmp_path, "def build():\n    return lambda sample: sample\n")
    with pytest.raises(InputError, match="needs one tensor"):
        changed(found, {"a": torch.ones(2, 3), "b": torch.ones(2, 3)})


@pytest.fixture
def recipe(tmp_path):
    """A recipe of images with a transform of its own, which a test may rewrite."""
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 20), ("recovery", 8), ("validation", 8)):
        x = rng.integers(1, 200, size=(count, 1, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=x, y=rng.integers(3, size=count))
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def load(body):
        (tmp_path / "own.py").write_text(f"def build():\n    return lambda image: {body}\n")
        loaded = load_recipe(tmp_path / "recipe.yaml")
        return loaded, load_inputs(loaded, tmp_path / "net.pt")

    return load


RECIPE = """
model: {factory: "net.py:net"}
data:
  source: arrays
  augment: {transforms: "own.py:build"}
  splits:
    calibration: {path: calibration.npz}
    recovery: {path: recovery.npz}
    validation: {path: validation.npz}
calibrate: {num_gradients: 4, samples_per_gradient: 2}
prune: {sparsity: 0.5}
recover: {epochs: 1}
export: {sparse_kernels: "off"}
"""


def test_only_what_is_trained_on_is_changed_and_the_code_is_in_the_key(recipe, tmp_path):
    _, inputs = recipe("image * 0")
    generator = torch.Generator().manual_seed(0)
    (batch,) = inputs.training.shuffled(8, generator)
    assert not batch.inputs.any()
    for split in (inputs.data.calibration, inputs.data.validation):
        (batch,) = split.batches(100, augment=True, generator=generator)
        assert batch.inputs.all()
    (batch,) = inputs.calibration.gradient_batches(inputs.model.module, torch.tensor([[0, 1]]), 0)
    assert batch.inputs.all()
    assert str(tmp_path / "own.py") in inputs.code.files
    assert recipe("image * 1")[1].code.digest != inputs.code.digest


def test_a_transform_that_does_not_fit_is_refused_before_any_work(recipe):
    loaded, inputs = recipe("image[:, :2]")
    (stage,) = [one for one in plan_stages(loaded, inputs) if one.name == "recover"]
    with pytest.raises(InputError, match=r"data\.augment\.transforms must return a sample"):
        stage.check(Ranks(), **stage.given)
