"""Whether a model can be copied: pruning and training work on copies."""

from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import user_code
from mfac_compress.pipeline.inputs.model import Model


def check_copy(model: Model) -> None:
    """Copy the model once, and load its own state into the copy.

    Raises:
        InputError: If it cannot be copied, and names the tensors that are in the way; if the copy
            does not take the state.
    """
    try:
        with user_code():
            copied = model.copy()
    except Exception as error:
        computed = _computed_tensors(model.module)
        hint = (
            f"{', '.join(computed[:3])} is a tensor that was computed from parameters and kept as "
            "an attribute. Compute it in forward, or keep it as a buffer."
            if computed
            else "Keep in its modules only what copy.deepcopy takes."
        )
        raise InputError(
            f"The model must be one that copy.deepcopy can copy. It raised {describe(error)}. "
            f"{hint}"
        ) from error
    try:
        with user_code():
            copied.load_state_dict(model.module.state_dict())
    except Exception as error:
        raise InputError(
            "The model must take its own state_dict. load_state_dict raised "
            f"{describe(error)}. Look at the hooks of its modules."
        ) from error


def _computed_tensors(module: nn.Module) -> list[str]:
    """Attributes that PyTorch does not copy: tensors inside a graph of gradients."""
    return [
        f"{owner}.{name}" if owner else name
        for owner, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
