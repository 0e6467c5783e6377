"""Checks of the options of an M-FAC parameter group."""

from functools import reduce
from typing import Any

import torch

from mfac_compress.mfac.checks import check_damping

_WINDOW_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def group_size(group: dict[str, Any]) -> int:
    """d, the number of weights in the group."""
    return sum(p.numel() for p in group["params"])


def group_window_dtype(group: dict[str, Any]) -> torch.dtype:
    """Return the option, or the dtype to which all parameters' dtypes promote."""
    return group["window_dtype"] or reduce(torch.promote_types, (p.dtype for p in group["params"]))


def check_group(group: dict[str, Any]) -> None:
    """Check a group's options and parameters.

    Raises:
        ValueError: If one is unusable; the message names it.
    """
    check_damping(group["damping"])
    m = group["num_gradients"]
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise ValueError(f"num_gradients must be an integer of at least 1. Got {m}. Try 128.")
    if not 0 <= group["lr"] < float("inf"):
        raise ValueError(f"lr must be finite and not negative. Got {group['lr']}. Try 1e-3.")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must be in [0, 1). Got {group['momentum']}. Try 0.9.")
    if not 0 <= group["weight_decay"] < float("inf"):
        raise ValueError(
            f"weight_decay must be finite and not negative. Got {group['weight_decay']}."
        )
    if group["window_dtype"] not in (None, *_WINDOW_DTYPES):
        raise ValueError(
            f"window_dtype must be None or one of {', '.join(map(str, _WINDOW_DTYPES))}. "
            f"Got {group['window_dtype']}."
        )
    if not group_size(group) or not all(p.is_floating_point() for p in group["params"]):
        raise ValueError(
            "A group's parameters must be floating-point numbers, at least one. Got "
            f"{group_size(group)} numbers of {sorted({str(p.dtype) for p in group['params']})}."
        )
    devices = {p.device for p in group["params"]}
    if len(devices) > 1:
        raise ValueError(
            f"A group's parameters must be on one device. Got {sorted(map(str, devices))}. "
            "Give each device a group of its own."
        )
