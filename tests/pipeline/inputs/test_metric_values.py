"""What a metric may return, and what is refused by name."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.metric_values import UndefinedMetricError, metric_values


def _values(value, count=3, range_=None):
    return metric_values(value, count, section="task", name="own.py:metric", range_=range_)


@pytest.mark.parametrize(
    "value",
    [
        [1, 0, 1],
        [True, False, True],
        [1.0, Fraction(0), 1],
        np.array([1, 0, 1], dtype=np.uint8),
        torch.tensor([True, False, True]),
        torch.tensor([1, 0, 1], dtype=torch.bfloat16),
        torch.tensor([1.0, 0, 1], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0)],
    ],
    ids=str,
)
def test_numbers_of_every_kind_are_values(value):
    values = _values(value)
    assert values.dtype == np.float64
    assert values.tolist() == [1, 0, 1]


@pytest.mark.parametrize("value", [0.5, Fraction(1, 2), np.float32(0.5), torch.tensor(0.5)])
def test_one_number_is_one_number(value):
    assert _values(value) == 0.5
    assert isinstance(_values(value), float)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        10**400,
        [1, 10**400, 1],
        [0.5, float("nan"), 0.5],
        [1e308, 1e308, 1e308],
        torch.tensor([0.0, -float("inf"), 0.0]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_finite_is_no_value(value):
    with pytest.raises(UndefinedMetricError, match=r"task\.metric must return .*own\.py:metric"):
        _values(value)


class Raises:
    def __array__(self, *_, **__):
        raise SystemExit(0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.5",
        ["0.5", "1", "2"],
        [None, None, None],
        1 + 2j,
        torch.tensor([1j, 1j, 1j]),
        np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
        object(),
        {"f1": 0.5},
        [[1, 2], [3]],
        Raises(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(InputError, match=r"task\.metric must return .*own\.py:metric"):
        _values(value)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (1, 3), (3, 3), (1,), (0,)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"shape \[3\], or one number") as caught:
        _values(np.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_values_outside_of_the_declared_range_are_refused():
    with pytest.raises(InputError, match=r"task\.range must hold .*\[0, 1\].*returned 1\.2"):
        _values([0.5, 1.2, 0], range_=(0.0, 1.0))
    with pytest.raises(InputError, match=r"task\.range must hold"):
        _values(-0.1, range_=(0.0, 1.0))


def test_rounding_at_the_ends_of_the_range_is_none_of_its_faults():
    assert _values([1 + 1e-7, -1e-7, 1], range_=(0.0, 1.0)).tolist() == [1, 0, 1]
