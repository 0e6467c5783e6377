"""Whether a sample's outputs depend on nothing but the sample.

The gates measure samples in batches, and who uses the model may send one. So both must give the
same answer.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.forward import run_model
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.quoting import listed

_MUST = "The model's outputs for a sample must not depend on the other samples of the batch."
_SAMPLES = 8
_ALONE = 3
# Of the outputs' scale. Rounding is a hundred times smaller; a GPU may multiply in TensorFloat-32.
_TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2}


def check_independence(module: nn.Module, split: Split, device: torch.device) -> None:
    """Compare samples alone with the same samples in a batch, in evaluation mode.

    Args:
        module: The model, on ``device``.
        split: Has the samples.
        device: Where it runs.

    Raises:
        InputError: If the model draws random numbers, or a sample's outputs depend on the others.
    """
    x = _samples(split)
    given = x.clone()
    try:
        together, again = (run_model(module, x, device) for _ in range(2))
        if not torch.equal(given.nan_to_num(), x.nan_to_num()):
            raise InputError(
                "The model must not change its inputs. It wrote into them: use no operation in "
                "place on the inputs in forward."
            )
        _check_repeats(together, again)
        alone = [run_model(module, x[at : at + 1], device) for at in range(min(_ALONE, len(x)))]
    except InputError as error:
        # A batch norm without statistics cannot even run on one sample, and says so in its way.
        cause = _cause(module)
        raise (InputError(f"{_MUST} {cause}") if cause else error) from error
    if len(x) == 1:
        return
    expected = together[: len(alone)]
    found = torch.cat(alone)
    if found.shape != expected.shape or not _close(found, expected):
        raise InputError(
            f"{_MUST} Alone and in a batch of {len(x)} they differ{_by(found, expected)}. "
            f"{_cause(module) or 'Look for what mixes the samples in forward.'}"
        )


def _check_repeats(first: Tensor, second: Tensor) -> None:
    if not isinstance(first, Tensor) or _close(first, second):
        return
    raise InputError(
        "The model's outputs must be the same each time, in evaluation mode. The same batch gave "
        f"outputs that differ{_by(first, second)}. Take out what draws random numbers or keeps "
        "state between calls (dropout that ignores eval()?)."
    )


def _samples(split: Split) -> Tensor:
    """Some of the validation samples."""
    count = min(_SAMPLES, len(split))
    return next(split.batches(count, indices=torch.arange(count))).inputs


def _close(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.double(), expected.double()
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
    tolerance = _TOLERANCE[expected.device.type] * scale
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def _by(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f" in shape, {list(found.shape)} and {list(expected.shape)}"
    difference = (found.double() - expected.double()).abs().max().item()
    return f" by up to {difference:.3g}, of {expected.double().abs().max().item():.3g}"


def _cause(module: nn.Module) -> str | None:
    """The layers that are known to mix samples in evaluation mode, and what to do."""
    norms = [
        name or "the model"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is None
    ]
    if not norms:
        return None
    return (
        f"{listed(norms, most=1)} is a batch norm without running statistics, which takes those of "
        "the batch. Train it with track_running_stats=True, or use GroupNorm."
    )
