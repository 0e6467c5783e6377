"""One tensor out of what the models of the transformers library return.

Hooks on the module do it, so that names of parameters stay those of the folder.
"""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mfac_compress.pipeline.errors import InputError

_MASK = "attention_mask"


def install_logits(module: nn.Module) -> None:
    """Let a classifier return its logits ``[n, classes]``, or a lone one as a score ``[n]``.

    Args:
        module: Changed in place: it gets a forward hook, which copies of it have too.
    """
    module.register_forward_hook(_logits)


def install_pooling(module: nn.Module, pooling: Literal["mean", "cls"]) -> None:
    """Let an encoder return one vector of length 1 for each text. Shape ``[n, d]``.

    Args:
        module: Changed in place: it gets a forward hook, which copies of it have too. It must be
            called with ``attention_mask`` by name.
        pooling: ``mean`` of the tokens that are no padding, or the first token (``cls``).
    """
    module.register_forward_hook(_Pooling(pooling), with_kwargs=True)


def _logits(module: nn.Module, arguments: Any, returned: Any) -> Tensor:
    del module, arguments
    logits = returned.logits
    return logits.squeeze(1) if logits.shape[1:] == (1,) else logits


class _Pooling:
    def __init__(self, pooling: str) -> None:
        self._pooling = pooling

    def __call__(self, module: nn.Module, arguments: Any, named: Any, returned: Any) -> Tensor:
        del module, arguments
        hidden = returned.last_hidden_state
        if self._pooling == "cls":
            return F.normalize(hidden[:, 0], dim=1)
        if _MASK not in named:
            raise InputError(
                f"model.task embedding needs {_MASK} among the inputs, to leave out padding. Got "
                f"{', '.join(named) or 'none by name'}. Let the data give it by that name."
            )
        weights = named[_MASK].unsqueeze(2).to(hidden.dtype)
        # The mean's divisor cancels in the length 1.
        return F.normalize((hidden * weights).sum(1), dim=1)
