"""The random changes of spoken words that the recipe for DS-CNN trains with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mfac_compress.pipeline.inputs.callables import resolve_callable
from mfac_compress.pipeline.inputs.transforms import load_transforms
from mfac_compress.pipeline.recipe.schema import Augment

RECIPES = Path(__file__).parents[2] / "recipes"
NAME = "models/speech_changes.py:changes"


def words(count=20):
    """Bytes of coefficients, whose first is the loudness."""
    drawn = torch.randn(count, 49, 10, generator=torch.Generator().manual_seed(0))
    spread = torch.tensor([40.0, 7, 5, 4, 3, 2, 2, 2, 2, 2])
    return (drawn.cumsum(dim=1) / 5 * spread + 70).round().clamp(-128, 127).long()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_words_stay_bytes_of_their_type_and_differ_each_time(dtype):
    transforms = load_transforms(Augment(transforms=NAME), folder=RECIPES)
    x, generator = words().to(dtype), torch.Generator().manual_seed(0)

    once, again = transforms(x, generator), transforms(x, generator)

    assert once.dtype == dtype
    assert torch.equal(once, once.round())
    assert once.min() >= -128
    assert once.max() <= 127
    assert not torch.equal(once, again)
    assert torch.equal(once, transforms(x, torch.Generator().manual_seed(0)))


def test_energies_are_the_inverse_of_coefficients():
    build = resolve_callable(NAME, key="data.augment.transforms", folder=RECIPES)
    constants = build.__globals__
    product = constants["_TO_BANDS"] @ constants["_TO_COEFFICIENTS"]
    np.testing.assert_allclose(product, np.eye(10), atol=1e-12)


def test_what_a_shift_uncovers_is_as_the_end_of_the_word():
    build = resolve_callable(NAME, key="data.augment.transforms", folder=RECIPES)
    values = np.array([[1.0], [2.0], [4.0]])
    found = build.__globals__["_interpolated"](values, np.array([-3.0, 0.5, 1.5, 9.0]))
    np.testing.assert_allclose(found[:, 0], [1, 1.5, 3, 4])
