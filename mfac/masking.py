"""Keep removed weights at zero while a model trains."""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class MaskHooks:
    """Masks gradients before, and weights and optimizer state after, each step of an optimizer.

    All three are needed: weight decay and momentum move a weight whose gradient is zero, and a
    later run that loads the optimizer's state would move it too.

    Args:
        parameters: Name to trained parameter.
        masks: Name to mask, True = kept, of the parameter's shape.

    Raises:
        ValueError: If a mask has no parameter, or its shape is not the parameter's.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise ValueError(
                    f"Each mask must have a parameter of its shape. Got the mask {name} "
                    f"{list(mask.shape)} for "
                    f"{list(parameters[name].shape) if name in parameters else 'no parameter'}."
                )
        self._pairs = [
            (name, parameters[name], mask.to(parameters[name].device))
            for name, mask in masks.items()
        ]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.apply()

    def attach(self, optimizer: Optimizer) -> "MaskHooks":
        """Register the hooks with an optimizer until the ``with`` block ends."""
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._mask_gradients()),
            optimizer.register_step_post_hook(lambda *_: self._mask_after_step(optimizer)),
        ]
        return self

    def __enter__(self) -> "MaskHooks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the removed weights to +0."""
        for _, parameter, mask in self._pairs:
            parameter.masked_fill_(~mask, 0)

    def check(self) -> None:
        """Check that no removed weight has come back.

        Raises:
            RuntimeError: If one has; it names the tensor and how many.
        """
        for name, parameter, mask in self._pairs:
            alive = int(parameter.detach()[~mask].count_nonzero())
            if alive:
                raise RuntimeError(
                    f"Removed weights must stay zero. Got {alive} nonzero ones in {name}. "
                    "Something other than the optimizer changes the model's weights."
                )

    def _mask_gradients(self) -> None:
        for _, parameter, mask in self._pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)

    def _mask_after_step(self, optimizer: Optimizer) -> None:
        self.apply()
        for _, parameter, mask in self._pairs:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.masked_fill_(~mask, 0)
