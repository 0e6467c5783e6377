"""The operators that a program of torch.export may call.

``torch.export.load`` looks operators up by name, in ``torch`` and in everything that ``torch`` has
imported: ``torch.os.system`` is one to it. So a name must be that of a tensor operator of ATen, of
arithmetic on sizes, or of a branch.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_HIGHER_ORDER = {
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "wrap_with_autocast", "wrap_with_set_grad_enabled")
}
_ON_SIZES = {
    *(f"_operator.{name}" for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos")),
    *(f"_operator.{name}" for name in ("mul", "add", "sub", "floordiv", "mod", "truediv")),
    *(f"_operator.{name}" for name in ("pow", "and_", "or_", "lshift", "rshift", "getitem")),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")),
    *(f"torch._sym_{name}" for name in ("sqrt",)),
    "math.trunc",
}
_MOST_FACTORS = 64
_MOST_EXPONENT = {"_operator.pow": 8, "_operator.lshift": 62}

_REFUSED = re.compile(
    # They read or write files, or memory that is not theirs, or print.
    r"from_file|set|set_|set_data|record_stream|resize|resize_|resize_as.*|empty_strided"
    r"|.*(_backward|_out|pin_memory)"
    # Of other devices and other kinds of tensors, whose contents are not checked.
    r"|(sparse|to_sparse|cudnn|miopen|mkldnn|fbgemm|quantized|quantize|nested|to_mkldnn)_?.*"
)
_INTERNAL = re.compile(
    r"__(and|or|xor|lshift|rshift|iand|ior|ixor|ilshift|irshift)__"
    r"|_adaptive_avg_pool[23]d|_assert_(async|scalar|tensor_metadata)|_batch_norm_no_update"
    r"|_cdist_forward|_conj|_convolution(_mode)?|_cast_\w+|_embedding_bag(_forward_only)?"
    r"|_euclidean_dist|_fft_(c2c|c2r|r2c)|_functional_assert_(async|scalar)|_fused_rms_norm"
    r"|_functional_sym_constrain_range(_for_size)?|_linalg_(det|eigh|slogdet|solve_ex|svd)"
    r"|_local_scalar_dense|_log_softmax|_native_batch_norm_legit(_functional|_no_training)?"
    r"|_pad_circular|_pad_enum|_pdist_forward|_prelu_kernel|_reshape_alias|_reshape_copy"
    r"|_safe_softmax|_scaled_dot_product_\w+|_softmax|_stack|_to_copy|_trilinear|_unsafe_view"
    r"|_upsample_\w+|_weight_norm|_weight_norm_interface"
)
"""What ATen names with an underscore and torch.export writes nevertheless."""


def is_allowed(target: str) -> bool:
    """Whether a program may call an operator.

    Args:
        target: Its name in the file, for example ``torch.ops.aten.conv2d.default``.
    """
    found = _ATEN.fullmatch(target)
    if found is None:
        return target in _HIGHER_ORDER | _ON_SIZES
    name, overload = found.groups()
    if _REFUSED.fullmatch(name) or (name.startswith("_") and not _INTERNAL.fullmatch(name)):
        return False
    return f"aten::{name}" + ("" if overload == "default" else f".{overload}") in _registered()


@cache
def _registered() -> frozenset[str]:
    """The tensor operators; those of TorchScript alone, such as ``aten::save``, are not there."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def grows_without_bound(nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """Find arithmetic on sizes whose result has too many digits to ever end.

    Args:
        nodes: A graph's nodes as they are in the file, checked for their types.
    Returns:
        The name of the operator; None where there is none.
    """
    factors: dict[str, int] = {}
    for node in nodes:
        target = node["target"]
        if target not in _ON_SIZES:
            continue
        operands = [_operand(argument["arg"], factors) for argument in node["inputs"]]
        count = sum(operands) if target == "_operator.mul" else max(operands, default=1)
        limit = _MOST_EXPONENT.get(target)
        if limit is not None:
            exponent = node["inputs"][-1]["arg"].get("as_int")
            if exponent is None or not 0 <= exponent <= limit:
                return target
            count *= max(exponent, 1)
        if count > _MOST_FACTORS:
            return target
        for output in node["outputs"]:
            for value in output.values():
                if isinstance(value, Mapping) and "as_name" in value:
                    factors[value["as_name"]] = count
    return None


def _operand(argument: Mapping[str, Any], factors: Mapping[str, int]) -> int:
    (value,) = argument.values()
    return factors.get(value.get("as_name"), 1) if isinstance(value, Mapping) else 1
