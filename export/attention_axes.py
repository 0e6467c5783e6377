"""Scaled dot-product attention on any number of axes, for an exporter that translates four."""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class FourAxes(TorchFunctionMode):
    """Let all attention within this context be computed on four axes."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *others: Any,
    **options: Any,
) -> Tensor:
    """Compute ``scaled_dot_product_attention`` on tensors of four axes.

    Args:
        query: Shape ``[..., L, E]``.
        key: Shape ``[..., S, E]``.
        value: Shape ``[..., S, V]``.
        attn_mask: A shape that broadcasts to ``[..., L, S]``.
        others: Further arguments of PyTorch's function, and so are ``options``.
    Returns:
        Shape ``[..., L, V]``.
    """
    leading = query.shape[:-3]
    same = leading == key.shape[:-3] == value.shape[:-3]
    if query.ndim == 4 or not same:
        return scaled_dot_product_attention(query, key, value, attn_mask, *others, **options)
    folded = [_folded(each, query.ndim) for each in (query, key, value)]
    if attn_mask is not None and attn_mask.ndim > 3:  # others go along with the last three axes
        attn_mask = _folded(attn_mask.expand(*leading, *attn_mask.shape[-3:]), query.ndim)
    result = scaled_dot_product_attention(*folded, attn_mask, *others, **options)
    return result.reshape(*leading, *result.shape[-min(query.ndim, 3) :])


def _folded(tensor: Tensor, axes: int) -> Tensor:
    return tensor.flatten(0, -4) if axes > 4 else tensor[(None,) * (4 - axes)]
