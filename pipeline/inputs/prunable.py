"""Which parameters of a model are matrices that multiply its inputs: what pruning can work on."""

import itertools
from collections.abc import Iterator

from torch import Tensor, fx, nn

from mfac_compress.export.from_onnx import OnnxModule

_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_WEIGHT_ARGUMENT = {
    "aten.linear": 1,
    "aten.conv1d": 1,
    "aten.conv2d": 1,
    "aten.conv3d": 1,
    "aten.conv_transpose1d": 1,
    "aten.conv_transpose2d": 1,
    "aten.conv_transpose3d": 1,
    "aten.convolution": 1,
    "aten.addmm": 2,
    "aten.mm": 1,
    "aten.matmul": 1,
}
_RECURRENT_OPS = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
_TURNED = ("aten.t", "aten.numpy_T", "aten.transpose", "aten.permute")
"""Operators whose result has the zeros of the weight that they are given."""


def why_not_prunable(module: nn.Module) -> dict[str, str]:
    """Name the parameters that cannot be pruned.

    Args:
        module: Any model, also the module of an exported program: that one has lost its layers'
            types, so its graph is asked instead.
    Returns:
        Parameter name to reason. What is not in it can be pruned.
    """
    weights = {id(weight) for weight in _weights(module)}
    uses = _uses(module)
    known = module.reasons if isinstance(module, OnnxModule) else {}
    reasons = {}
    for name, parameter in module.named_parameters():
        reason = known.get(name) or _reason(
            name, parameter, id(parameter) in weights, uses.get(id(parameter), [])
        )
        if reason is not None:
            reasons[name] = reason
    return reasons


def _reason(name: str, parameter: Tensor, is_weight: bool, uses: list[str]) -> str | None:
    last = name.rpartition(".")[2]
    if not is_weight:
        if last.startswith("bias") or last.endswith("bias"):
            return "a bias"
        return f"not a linear or convolution weight ({uses[0] if uses else 'in forward'})"
    if uses:
        return f"tied: also used by {uses[0]}"
    if not parameter.requires_grad:
        return "frozen: requires_grad is False"
    if not parameter.numel():
        return "it has no elements"
    return None


def _weights(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from _weights_of(part)
    if isinstance(module, fx.GraphModule):
        for node in parameter_nodes(module):
            if any(_multiplies(node, user) for user in node.users):
                yield _tensor_of(module, node)


def _weights_of(part: nn.Module) -> Iterator[Tensor]:
    """The weights of one layer, without those of layers in it."""
    own = part._parameters
    if isinstance(part, _LINEAR):
        names = ["weight"]
    elif isinstance(part, nn.MultiheadAttention):
        names = list(_ATTENTION_WEIGHTS)
    elif isinstance(part, (nn.RNNBase, *_CELLS)):
        names = [name for name in own if name.startswith("weight_")]
    elif _is_transposed_linear(part):
        names = ["weight"]
    else:
        names = []
    yield from (own[name] for name in names if own.get(name) is not None)


def _is_transposed_linear(part: nn.Module) -> bool:
    """Whether a layer is the Conv1D of the transformers library: ``x W``, W ``[in, out]``."""
    weight = part._parameters.get("weight")
    return type(part).__name__ == "Conv1D" and weight is not None and weight.ndim == 2


def _uses(module: nn.Module) -> dict[int, list[str]]:
    """What beside the layers above holds or uses a parameter: type of layer, or operator."""
    uses: dict[int, list[str]] = {}
    for part in module.modules():
        weights = {id(weight) for weight in _weights_of(part)}
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in weights:
                uses.setdefault(id(parameter), []).append(type(part).__name__)
    if isinstance(module, fx.GraphModule):
        # All parameters are the program's own there, so its operators count, and no layers.
        uses = {id(_tensor_of(module, node)): [] for node in parameter_nodes(module)}
        for node in parameter_nodes(module):
            others = [user for user in node.users if not _multiplies(node, user)]
            uses[id(_tensor_of(module, node))] += [operator_of(user) for user in others]
    return uses


def parameter_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of an exported program that read a parameter which is used."""
    parameters = {id(parameter) for parameter in module.parameters()}
    reads = [node for node in module.graph.nodes if node.op == "get_attr" and node.users]
    return [node for node in reads if id(_tensor_of(module, node)) in parameters]


def _tensor_of(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    found = module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    return found


def _multiplies(weight: fx.Node, user: fx.Node) -> bool:
    """Whether an operator takes a value as its weight, as it is or turned."""
    operator = operator_of(user)
    if operator in _TURNED:
        return bool(user.users) and all(_multiplies(user, following) for following in user.users)
    if operator in _RECURRENT_OPS:
        lists = [argument for argument in user.args if isinstance(argument, list | tuple)]
        matrices = itertools.chain.from_iterable(lists)
        return any(weight is one for one in matrices) and _is_matrix(weight)
    position = _WEIGHT_ARGUMENT.get(operator)
    if position is None or len(user.args) <= position or user.args[position] is not weight:
        return False
    return _is_matrix(weight) or "conv" in operator


def _is_matrix(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return value is not None and value.ndim == 2


def operator_of(node: fx.Node) -> str:
    """The operator of a node without its overload: ``aten.linear``."""
    return str(node.target).rpartition(".")[0] or str(node.target)
