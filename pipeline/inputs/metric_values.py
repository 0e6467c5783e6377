"""What the user's metric returns, as finite numbers."""

from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code

_NUMBERS = "biuf"
"""NumPy's kinds of bool, int, unsigned int and float."""
_ROUNDING = 1e-6
"""How far a value may lie outside of its range, in its widths: metrics compute in float32."""


class UndefinedMetricError(InputError):
    """The metric has no value on these samples; it may have one on others."""


def metric_values(
    value: Any, count: int, *, section: str, name: str, range_: tuple[float, float] | None
) -> np.ndarray | float:
    """Check what the user's metric returned.

    Args:
        value: What it returned.
        count: n, the number of samples.
        section: Key of the metric's section in the recipe, for messages.
        name: The metric's.
        range_: Least and greatest value that the recipe allows; None for any.
    Returns:
        Values of shape ``[n]``, float64, within the range; or one number.
    Raises:
        UndefinedMetricError: If a value, or the mean of all, is NaN or infinite.
        InputError: If it is no number or not one per sample, or is outside of the range.
    """
    values = _as_floats(value, section, name)
    if values.shape not in ((), (count,)):
        raise InputError(
            f"{section}.metric must return one value per sample, shape [{count}], or one number. "
            f"{name!r} returned shape {list(values.shape)}. Reduce or squeeze it to shape "
            f"[{count}]."
        )
    with np.errstate(all="ignore"):
        mean = values.mean()
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise UndefinedMetricError(
            f"{section}.metric must return finite values. {name!r} returned {bad}."
        )
    if not np.isfinite(mean):
        raise UndefinedMetricError(
            f"{section}.metric must return values whose sum is finite. {name!r} returned values up "
            f"to {np.abs(values).max():.3g}. Return them in a larger unit."
        )
    if range_ is not None:
        values = _within(values, range_, section, name)
    return float(values) if values.ndim == 0 else values


def _as_floats(value: Any, section: str, name: str) -> np.ndarray:
    try:
        with user_code():  # a class of the user's own may convert itself
            array = _as_array(value)
    except OverflowError as error:
        raise UndefinedMetricError(
            f"{section}.metric must return numbers that a float can hold. {name!r} returned a "
            "larger one."
        ) from error
    except Exception as error:
        raise InputError(
            f"{section}.metric must return numbers. {name!r} returned a {type(value).__name__}, "
            f"which is not readable as such: {describe(error)}."
        ) from error
    if array is None:
        raise InputError(
            f"{section}.metric must return real numbers: a float, or a tensor, array or list of "
            f"them. {name!r} returned {_what(value)}."
        )
    return array


def _as_array(value: Any) -> np.ndarray | None:
    """The value in float64; None where it is something else than real numbers."""
    if isinstance(value, Tensor):
        if value.is_complex():
            return None
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value)
    if array.dtype.kind == "O" and all(isinstance(one, Real | Tensor) for one in array.flat):
        array = np.array([float(one) for one in array.flat]).reshape(array.shape)
    return array.astype(np.float64) if array.dtype.kind in _NUMBERS else None


def _within(values: np.ndarray, range_: tuple[float, float], section: str, name: str) -> np.ndarray:
    low, high = range_
    slack = _ROUNDING * (high - low)
    outside = values[(values < low - slack) | (values > high + slack)]
    if outside.size:
        raise InputError(
            f"{section}.range must hold every value of the metric. Got [{low:g}, {high:g}], and "
            f"{name!r} returned {outside[0]:.6g}. Widen {section}.range, or clip the metric's "
            "values."
        )
    return values.clip(low, high)


def _what(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"a {type(value).__name__}" + (f" of {dtype}" if dtype is not None else "")
