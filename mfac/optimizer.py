"""M-FAC as an optimizer: each gradient preconditioned by the Fisher of the last m gradients."""

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from mfac_compress.mfac.optimizer_options import check_group, group_size, group_window_dtype
from mfac_compress.mfac.sliding_window import SlidingFisher


class MFAC(Optimizer):
    """Natural gradient with the damped empirical Fisher of a sliding window of gradients.

    A step takes, for each parameter group, the gradients of all its parameters as one vector:

        g ← gradient + weight_decay · w
        g enters the window, replacing the oldest gradient once it holds m
        u = F⁻¹g,  F = λI + (1/k) Σ gᵢgᵢᵀ over the k <= m gradients held, including g
        v ← momentum · v + (1 − momentum) · u,  from v = 0
        w ← w − lr · v

    Weight decay is the gradient of an L2 penalty, so it enters the window and is preconditioned;
    momentum is an average of preconditioned gradients, so the scale of ``lr`` does not depend on
    ``momentum``. Both are as in the paper's own implementation, so its learning rates carry over.
    Decoupled decay would have almost no effect at the small learning rates that suit F⁻¹g.

    Each group has its own window, damping and Fisher; curvature between groups is ignored. Put all
    weights into one group unless their options differ. Options may change between steps, except
    ``num_gradients`` and ``window_dtype``.

    A group's window, m times the size of its weights, is allocated at its first step, on the device
    of its parameters, and is part of ``optimizer.state``: a checkpoint contains it, and training
    resumes with the same steps. A parameter whose ``grad`` is None counts as zeros in the window
    and is not changed; a group without any gradient is skipped.

    With :class:`~mfac_compress.mfac.masking.MaskHooks` removed weights have zero columns in the
    window, hence no update. If weights are removed after training has begun, call :meth:`keep`, or
    their old gradients still affect the steps of the others.

    Args:
        params: Parameters, named parameters or groups of them, as for every optimizer of PyTorch.
        lr: Step size.
        num_gradients: m, the size of the window.
        damping: λ > 0.
        momentum: In [0, 1).
        weight_decay: Factor of the L2 penalty's gradient.
        window_dtype: Storage dtype of the gradients: float32, bfloat16, float16 or float64; None
            for that of the parameters. Gradients below 6e-8 are zero in float16.

    Raises:
        ValueError: If an option is out of range; the message names it.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = MFAC([w], lr=1.0, damping=5.0)
        >>> (w @ w / 2).backward()  # g = w
        >>> optimizer.step()  # F = 5 I + ggᵀ, so F⁻¹g = g / (5 + 25)
        >>> w.detach()
        tensor([2.9000, 3.8667])

    References:
        Frantar, Kurtic, Alistarh (2021), M-FAC, sections 3.2 and 4.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        num_gradients: int = 128,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        window_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "num_gradients": num_gradients,
            "damping": damping,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "window_dtype": window_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with a window of its own.

        Raises:
            ValueError: If one of its options is out of range, or its parameters are not real
                floating-point numbers on one device.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Evaluates the loss again and returns it.

        Raises:
            ValueError: If a gradient is sparse, not finite, or out of range for the window's dtype;
                nothing has changed then. If the damping is too small for the gradients; see
                :meth:`SlidingFisher.push`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # All groups are checked before the first is changed.
        gradients = [self._flat_gradient(index) for index in range(len(self.param_groups))]
        for group, gradient in zip(self.param_groups, gradients, strict=True):
            if gradient is not None:
                update = self._fisher(group).push(gradient, group["damping"])
                self._apply(group, update)
        return loss

    def keep(self, masks: Mapping[nn.Parameter, Tensor]) -> None:
        """Forget the gradients of removed weights, as if they had always been zero.

        Call it for weights removed after the first step; momentum is masked too. It recomputes the
        Gram matrix of the window, k² d FLOPs in float64.

        Args:
            masks: Parameter to mask, True = kept, of the parameter's shape. Parameters without a
                mask keep everything.

        Raises:
            ValueError: If a mask has another shape, or its parameter is not one of this
                optimizer's.
        """
        own = {parameter for group in self.param_groups for parameter in group["params"]}
        for parameter, mask in masks.items():
            if parameter not in own or parameter.shape != mask.shape:
                raise ValueError(
                    "Each mask must belong to a parameter of this optimizer and have its shape. "
                    f"Got one of {list(mask.shape)} for {list(parameter.shape)}."
                )
        for group in self.param_groups:
            parameters = group["params"]
            if not any(parameter in masks for parameter in parameters):
                continue
            kept = [
                masks[p].to(p.device) if p in masks else torch.ones_like(p, dtype=torch.bool)
                for p in parameters
            ]
            if "fisher" in self.state.get(parameters[0], {}):
                self._fisher(group).keep_columns(torch.cat([mask.reshape(-1) for mask in kept]))
            for parameter, mask in zip(parameters, kept, strict=True):
                if "momentum" in self.state.get(parameter, {}):
                    self.state[parameter]["momentum"].masked_fill_(~mask, 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; the windows are copied and keep their dtypes.

        Raises:
            ValueError: If it does not fit these parameter groups.
        """
        fishers = {
            index: state["fisher"]
            for index, state in state_dict["state"].items()
            if "fisher" in state
        }
        # The base class would cast the windows and their float64 matrices to the weights' dtype.
        others = {
            index: {key: value for key, value in state.items() if key != "fisher"}
            for index, state in state_dict["state"].items()
        }
        saved_groups = state_dict["param_groups"]
        came = [len(saved["params"]) for saved in saved_groups]
        held = [len(group["params"]) for group in self.param_groups]
        if came != held:
            raise ValueError(
                "The state's groups must have as many parameters as this optimizer's. "
                f"Got {came} for {held}."
            )
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            fisher = fishers.get(saved["params"][0])
            if fisher is not None and SlidingFisher(**fisher).size != group_size(group):
                raise ValueError(
                    "The state's window must have one column for each weight of its group. Got "
                    f"{SlidingFisher(**fisher).size} for {group_size(group)} weights. Load it into "
                    "an optimizer of the same model."
                )
        super().load_state_dict({**state_dict, "state": others})
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            fisher = fishers.get(saved["params"][0])
            if fisher is not None:
                first = group["params"][0]
                self.state[first]["fisher"] = {
                    "tiles": [tile.to(first.device, copy=True) for tile in fisher["tiles"]],
                    "gram": fisher["gram"].to(first.device, copy=True),
                    "added": fisher["added"].to("cpu", copy=True),
                }

    def _fisher(self, group: dict[str, Any]) -> SlidingFisher:
        """Return the group's window, allocated at its first use.

        It is stored in the state of the group's first parameter, so that PyTorch's state dict
        contains it, and in a dict of its own, so that mask hooks do not mistake one of its matrices
        for state of that parameter's shape.
        """
        state = self.state[group["params"][0]]
        if "fisher" not in state:
            state["fisher"] = SlidingFisher.empty(
                group["num_gradients"],
                group_size(group),
                group_window_dtype(group),
                group["params"][0].device,
            ).state()
        fisher = SlidingFisher(**state["fisher"])
        m, dtype = group["num_gradients"], group_window_dtype(group)
        if (fisher.num_gradients, fisher.dtype) != (m, dtype):
            raise ValueError(
                "num_gradients and window_dtype must stay as they were at the first step, "
                f"{fisher.num_gradients} and {fisher.dtype}. Got {m} and {dtype}. "
                "Make a new optimizer."
            )
        return fisher

    def _flat_gradient(self, index: int) -> Tensor | None:
        """Return the group's gradient with weight decay in the window's dtype. Shape ``[d]``."""
        group = self.param_groups[index]
        decay, dtype = group["weight_decay"], group_window_dtype(group)
        if all(p.grad is None for p in group["params"]):
            return None
        parts = []
        for position, p in enumerate(group["params"]):
            if p.grad is None:
                part = torch.zeros_like(p)
            elif p.grad.layout != torch.strided:
                raise ValueError(
                    f"Gradients must be dense. Got {p.grad.layout} for "
                    f"{self._name(index, position)}. Use sparse=False in the layer that makes it."
                )
            else:
                part = p.grad.add(p, alpha=decay) if decay else p.grad
            parts.append(part.reshape(-1))
        flat = torch.cat(parts).to(dtype)
        # One pass: the largest magnitude is NaN or infinity if any is.
        if not torch.linalg.vector_norm(flat, float("inf")).isfinite():
            position = next(
                i for i, part in enumerate(parts) if not part.to(dtype).isfinite().all()
            )
            raise ValueError(
                f"Gradients must be finite in the window's {dtype}. Got NaN or infinity for "
                f"{self._name(index, position)}. Check the batch and the loss"
                + (", or use window_dtype bfloat16." if dtype == torch.float16 else ".")
            )
        return flat

    def _name(self, index: int, position: int) -> str:
        group = self.param_groups[index]
        shape = list(group["params"][position].shape)
        if "param_names" in group:
            return f"{group['param_names'][position]} {shape}"
        return f"parameter {position} {shape} of group {index}"

    def _apply(self, group: dict[str, Any], update: Tensor) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        parameters = group["params"]
        for p, part in zip(parameters, update.split([p.numel() for p in parameters]), strict=True):
            if p.grad is None:
                continue
            direction = part.view(p.shape).to(p.dtype)
            if momentum:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                direction = state["momentum"].lerp_(direction, 1 - momentum)
            p.add_(direction, alpha=-lr)
