"""Whether a sample's outputs depend on nothing but the sample.

The gates measure samples in batches, and who uses the model may send one. So both must give the
same answer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac_compress.mfac.batch import Tree, concatenate, map_tensors, named_tensors, size
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.forward import run_model
from mfac_compress.pipeline.inputs.splits import Split
from mfac_compress.pipeline.quoting import listed, type_and_shape

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
    inputs = _samples(split)
    count, given = size(inputs), map_tensors(torch.clone, inputs)
    try:
        together, again = (run_model(module, inputs, device) for _ in range(2))
        if not _all(torch.equal, given, inputs):
            raise InputError(
                "The model must not change its inputs. It wrote into them: use no operation in "
                "place on the inputs in forward."
            )
        _check_rows(together, count)
        _check_repeats(together, again)
        alone = [
            run_model(module, _rows(inputs, at, at + 1), device) for at in range(min(_ALONE, count))
        ]
    except InputError as error:
        # A batch norm without statistics cannot even run on one sample, and says so in its way.
        cause = _cause(module)
        raise (InputError(f"{_MUST} {cause}") if cause else error) from error
    if count == 1:
        return
    expected, found = _rows(together, 0, len(alone)), concatenate(alone)
    if not _all(_close, found, expected):
        raise InputError(
            f"{_MUST} Alone and in a batch of {count} they differ{_by(found, expected)}. "
            f"{_cause(module) or 'Look for what mixes the samples in forward.'}"
        )


def _check_repeats(first: Tree, second: Tree) -> None:
    if _all(_close, first, second):
        return
    raise InputError(
        "The model's outputs must be the same each time, in evaluation mode. The same batch gave "
        f"outputs that differ{_by(first, second)}. Take out what draws random numbers or keeps "
        "state between calls (dropout that ignores eval()?)."
    )


def _check_rows(outputs: Tree, count: int) -> None:
    if any(tensor.shape[:1] != (count,) for _, tensor in named_tensors(outputs)):
        raise InputError(
            f"The model must return tensors [n, ...] for n samples. For {count} it returned "
            f"{type_and_shape(outputs)}. Wrap the model in model.factory, or choose an output with "
            "model.output."
        )


def _rows(tree: Tree, start: int, stop: int) -> Tree:
    return map_tensors(lambda tensor: tensor[start:stop], tree)


def _all(same: Callable[[Tensor, Tensor], bool], first: Tree, second: Tree) -> bool:
    return all(each for _, each in named_tensors(map_tensors(same, first, second)))


def _samples(split: Split) -> Tree:
    """Some of the validation samples."""
    count = min(_SAMPLES, len(split))
    return next(split.batches(count, indices=torch.arange(count))).inputs


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = found.double(), expected.double()
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
    tolerance = _TOLERANCE[expected.device.type] * scale
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def _by(found: Tree, expected: Tree) -> str:
    pairs = zip(named_tensors(found), named_tensors(expected), strict=True)
    name, one, other = next((n, a, b) for (n, a), (_, b) in pairs if not _close(a, b))
    place = f" in {name}" if name else ""
    if one.shape != other.shape:
        return f"{place} in shape, {list(one.shape)} and {list(other.shape)}"
    difference = (one.double() - other.double()).abs().max().item()
    return f"{place} by up to {difference:.3g}, of {other.double().abs().max().item():.3g}"


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
