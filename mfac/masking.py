"""Keep removed weights at zero while a model trains."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac_compress.mfac.mask_file import load_masks


def revived(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the weights that masks remove and that are not zero.

    Args:
        tensors: By name, on the masks' device. Those without a mask do not count.
        masks: True = kept. Shape of the tensor.

    Returns:
        How many there are, by the name of each tensor that has any.
    """
    counts = {
        name: int(tensors[name].detach()[~mask].count_nonzero()) for name, mask in masks.items()
    }
    return {name: count for name, count in counts.items() if count}


class MaskHooks:
    """Masks gradients before, and weights and optimizer state after, each step of an optimizer.

    All three are needed: weight decay and momentum move a weight whose gradient is zero, and a
    later run that loads the optimizer's state would move it too.

    Args:
        parameters: Name to trained parameter.
        masks: Name to mask, True = kept, of the parameter's shape.

    Raises:
        ValueError: If a mask has no parameter, or its shape is not the parameter's.

    Example:
        A training loop of one's own, with the masks that a run has left:

        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> model, mask = nn.Linear(4, 3), torch.rand(3, 4) > 0.5
        >>> file = f"{tempfile.mkdtemp()}/masks.safetensors"
        >>> save_file({"weight": mask}, file)

        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> hooks = MaskHooks.load(file, model).attach(optimizer)
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> hooks.check()
        >>> bool(model.weight[~mask].any())
        False
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise ValueError(
                    f"Each mask must have a parameter of its shape. Got the mask {name} "
                    f"{list(mask.shape)} for "
                    f"{list(parameters[name].shape) if name in parameters else 'no parameter'}."
                )
        self._parameters = {name: parameters[name] for name in masks}
        self._masks = dict(masks)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.apply()

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> "MaskHooks":
        """Take the masks of a file, and set the weights that they remove to zero.

        Args:
            path: ``masks.safetensors`` of a run's directory.
            model: The model that was pruned, with the weights that lie beside the masks, in
                ``model.safetensors``.

        Raises:
            ValueError: If the masks are not those of this model. All that do not fit are named.
        """
        parameters = dict(model.named_parameters())
        return cls(parameters, load_masks(path, parameters))

    def attach(self, optimizer: Optimizer) -> "MaskHooks":
        """Register the hooks with an optimizer until the ``with`` block ends, or else for good.

        Args:
            optimizer: Of the parameters. Where several share them, attach each of them.

        Raises:
            ValueError: If it steps none of them, as the optimizer of a copy of the model does.
        """
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._masks and not stepped & {id(p) for p in self._parameters.values()}:
            raise ValueError(
                f"The optimizer must step a parameter that has a mask. Got one of {len(stepped)} "
                "other parameters. Make it of the parameters of the model that the masks were "
                "loaded for."
            )
        self._hooks += [
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
        for _, parameter, mask in self._masked():
            parameter.masked_fill_(~mask, 0)

    def check(self) -> None:
        """Check that no removed weight has come back.

        Raises:
            RuntimeError: If one has; it names the tensor and how many.
        """
        masks = {name: mask for name, _, mask in self._masked()}
        for name, count in revived(self._parameters, masks).items():
            raise RuntimeError(
                f"Removed weights must stay zero. Got {count} nonzero ones in {name}. "
                "Something other than the optimizer changes the model's weights."
            )

    def _masked(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Each parameter with its mask, which follows it to its device."""
        for name, parameter in self._parameters.items():
            self._masks[name] = self._masks[name].to(parameter.device)
            yield name, parameter, self._masks[name]

    def _mask_gradients(self) -> None:
        for _, parameter, mask in self._masked():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)

    def _mask_after_step(self, optimizer: Optimizer) -> None:
        self.apply()
        for _, parameter, mask in self._masked():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.masked_fill_(~mask.to(value.device), 0)
