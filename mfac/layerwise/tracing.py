"""A model's operators in the order in which they run, read by ``torch.export``."""

import contextlib
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from mfac_compress.mfac.batch import (
    FlatModel,
    Tree,
    call,
    channels_last,
    concatenate,
    evaluating,
    map_tensors,
    named_tensors,
    size,
)

aten = torch.ops.aten
# What changes no value, or only where it lies in memory.
_IDENTITIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.lift_fresh_copy.default,
}
_ADVICE = (
    "Its forward must be made of tensor operators whose course does not depend on the values of "
    "the inputs: run torch.export.export(model, (inputs,)) on the model by itself."
)


@dataclass(frozen=True, eq=False)
class Program:
    """Operators that compute a model's outputs from its inputs, parameters and buffers.

    No operator changes a value in place, so a value is what its node computes once.

    Args:
        nodes: The operators in the order in which they run.
        inputs: One node for each tensor of the inputs, in the order of ``named_tensors``.
        tensors: The nodes of parameters and buffers, with their names.
        constants: The nodes of other tensors.
        outputs: The nodes whose values are the outputs' tensors, in their order.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    tensors: Mapping[Node, str]
    constants: Mapping[Node, Tensor]
    outputs: tuple[Node, ...]

    def start(self, inputs: Tree) -> dict[Node, Any]:
        """The values that are known before any operator runs, but for parameters and buffers.

        Raises:
            ValueError: If the inputs are other than those that the model was traced with.
        """
        given = [tensor for _, tensor in named_tensors(inputs)]
        if len(given) != len(self.inputs):
            raise ValueError(
                "Inputs must have the form that the model was traced with, of "
                f"{len(self.inputs)} tensors. Got {len(given)}."
            )
        return {**self.constants, **dict(zip(self.inputs, map(channels_last, given), strict=True))}

    def value(self, node: Node, tensors: Mapping[str, Tensor], values: Mapping[Node, Any]) -> Any:
        """Run one operator.

        Args:
            node: The operator.
            tensors: Parameters and buffers by name: see :func:`named_state`.
            values: Those of the nodes before it.
        """

        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda argument: self.of(argument, tensors, values)
        )
        return node.target(*args, **kwargs)

    def of(self, node: Node, tensors: Mapping[str, Tensor], values: Mapping[Node, Any]) -> Any:
        """The value of a node that has run, or of a parameter or buffer."""
        name = self.tensors.get(node)
        return values[node] if name is None else tensors[name]


def named_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def trace(
    model: nn.Module, example: Tree, open_axes: Mapping[str, Iterable[int]] | None = None
) -> Program:
    """Read a model's operators in evaluation mode.

    Args:
        model: Any module, also that of an exported program. Not changed.
        example: Inputs, each ``[n, ...]``, on the model's device.
        open_axes: Name of an input to its axes, beside the first, of any length.

    Raises:
        ValueError: If the model cannot be traced, or fixes the number of samples.
    """
    if size(example) == 1:
        # The tracer treats an axis of length one as a constant.
        example = concatenate([example, example])
    example = map_tensors(lambda tensor: tensor.clone(), example)
    program = _export(FlatModel(model, example, _tensors), example, open_axes or {})
    graph = program.graph
    names = _names(model)
    inputs, tensors, constants = _placeholders(program, graph, names)
    _simplify(graph)
    _check_whole(graph)
    specs = program.graph_signature.output_specs
    outputs = tuple(
        node
        for node, spec in zip(graph.output_node().args[0], specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, Node)
    )
    if not outputs:
        raise ValueError(f"The model must return at least one tensor. Got none. {_ADVICE}")
    needed = _needed(outputs)
    nodes = tuple(n for n in graph.nodes if n.op == "call_function" and n in needed)
    return Program(nodes, inputs, tensors, constants, outputs)


def output_tensors(model: nn.Module, inputs: Tree) -> tuple[Tensor, ...]:
    """Call a model, and return the tensors in whatever it returns."""
    return _tensors(call(model, inputs))


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    leaves = pytree.tree_leaves(outputs)
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _export(
    flat: FlatModel, example: Tree, open_axes: Mapping[str, Iterable[int]]
) -> ExportedProgram:
    named = dict(named_tensors(example))
    unknown = [name for name in open_axes if name not in named]
    if unknown:
        raise ValueError(f"open_axes must name inputs: {', '.join(named)}. Got {unknown}.")
    dims = tuple(dict.fromkeys((0, *open_axes.get(name, ())), Dim.AUTO) for name in named)
    try:
        with evaluating(flat.wrapped), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), _silence():
            program = torch.export.export(flat, tuple(named.values()), dynamic_shapes=(dims,))
            # Operators stay what they are, but none works in place any more.
            return program.run_decompositions({})
    except Exception as error:
        # The tracer runs the model's code, which may raise anything.
        reason = str(error).strip().split("\n\n")[0]
        raise ValueError(
            f"The model's graph must be readable by torch.export, which raised "
            f"{type(error).__name__}: {reason}. {_ADVICE}"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings: what matters in them is raised as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _names(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter or buffer to its first name, where modules share it."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in named_state(model).items():
        names[name] = first.setdefault(id(tensor), name)
    return names


def _placeholders(
    program: ExportedProgram, graph: fx.Graph, names: Mapping[str, str]
) -> tuple[tuple[Node, ...], dict[Node, str], dict[Node, Tensor]]:
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    inputs, tensors, constants = [], {}, {}
    for spec in program.graph_signature.input_specs:
        node = nodes.get(getattr(spec.arg, "name", ""))
        name = (spec.target or "").removeprefix("wrapped.")
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in names:
            tensors[node] = names[name]
        elif spec.target in program.constants and isinstance(
            program.constants[spec.target], Tensor
        ):
            constants[node] = program.constants[spec.target]
        else:
            raise ValueError(f"The model must be made of tensors. Got {spec.target}. {_ADVICE}")
    return tuple(inputs), tensors, constants


def _simplify(graph: fx.Graph) -> None:
    """Take out what changes no value, and make views independent of the order in memory."""
    for node in list(graph.nodes):
        if node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            _simplify_batchnorm(graph, node)
        elif node.op == "call_function" and not node.users and _is_check(node.target):
            graph.erase_node(node)


def _simplify_batchnorm(graph: fx.Graph, node: Node) -> None:
    """Replace the operator, which returns three values, by a function that returns the first."""
    x, weight, bias, mean, var, momentum, eps = node.args
    with graph.inserting_before(node):
        simple = graph.call_function(
            F.batch_norm, (x, mean, var, weight, bias, False, momentum, eps)
        )
    simple.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(simple)
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)


def _is_check(target: Callable[..., Any] | str) -> bool:
    name = getattr(target, "__name__", str(target))
    return any(word in name for word in ("assert", "constrain_range", "_check"))


def _needed(outputs: Iterable[Node]) -> set[Node]:
    """The nodes on which others depend, and these."""
    needed: set[Node] = set()
    remaining = list(outputs)
    while remaining:
        node = remaining.pop()
        if node not in needed:
            needed.add(node)
            remaining.extend(node.all_input_nodes)
    return needed


def _check_whole(graph: fx.Graph) -> None:
    hidden = [node.name for node in graph.nodes if node.op == "get_attr"]
    if hidden:
        raise ValueError(
            f"The model must have one graph. Got control flow or a nested one, {hidden[0]}. "
            f"{_ADVICE}"
        )
