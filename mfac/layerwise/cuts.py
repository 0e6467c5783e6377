"""A model as a sequence of blocks, each with one tensor in and one out.

A *cut* is a place in the sequence of operators at which everything that has been computed with
parameters goes on in one tensor. So a residual branch lies between two cuts together with its
shortcut. What comes from the inputs without any parameter, as an attention mask does, is computed
anew in every block that needs it, so that it may pass over a cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from mfac_compress.mfac.layerwise.selections import same_shape
from mfac_compress.mfac.layerwise.tracing import Program

aten = torch.ops.aten
_ATTENTION = {aten.scaled_dot_product_attention.default, aten.softmax.int, aten._softmax.default}

# What these take beside a value is no matrix, whatever its shape.
_ELEMENTWISE = {aten.add.Tensor, aten.mul.Tensor, aten.cat.default}


@dataclass(frozen=True, eq=False)
class Block:
    """Successive operators of a model.

    Args:
        nodes: The operators, in order, with those that need no values of other blocks.
        gives: Its nodes whose values later blocks use, or which are outputs of the model.
        parameters: Names of the parameters that it uses.
    """

    nodes: tuple[Node, ...]
    gives: tuple[Node, ...]
    parameters: tuple[str, ...]

    @property
    def targets(self) -> tuple[Node, ...]:
        """What it gives, but for lengths of axes and the like."""
        return tuple(node for node in self.gives if _is_float(node))


def find_blocks(program: Program, parameters: Iterable[str]) -> tuple[Block, ...]:
    """Divide a model into blocks.

    A block begins with a matrix of weights and goes on to the next cut, over activations and
    normalisations. The two halves of a transformer's layer, attention and what follows, are one
    block.

    Args:
        program: The model's operators.
        parameters: Names of its parameters.
    """
    parameters = {*parameters}
    main = _main(program, parameters)
    spans = _with_attention(_merged(_spans(program, main), program, main, parameters))
    return tuple(_block(span, program, main, parameters) for span in spans)


def _main(program: Program, parameters: set[str]) -> set[Node]:
    """The nodes that depend on both inputs and parameters."""
    of_data, of_parameters = {*program.inputs}, set()
    of_parameters.update(node for node, name in program.tensors.items() if name in parameters)
    main: set[Node] = set()
    for node in program.nodes:
        before = node.all_input_nodes
        is_length = not _is_tensor(node)
        if any(n in of_data for n in before) and not is_length:
            of_data.add(node)
        if any(n in of_parameters for n in before):
            of_parameters.add(node)
        if (node in of_data and node in of_parameters) or any(n in main for n in before):
            main.add(node)
    return main


def _spans(program: Program, main: set[Node]) -> list[list[Node]]:
    """The main nodes between successive cuts."""
    uses = {node: sum(user in main for user in node.users) for node in main if _is_tensor(node)}
    # An input that is added to a value goes round all that lies between.
    shortcuts = _shortcuts_of_inputs(main)
    uses |= {node: sum(user in main for user in node.users) for node in shortcuts}
    spans: list[list[Node]] = [[]]
    live = set(shortcuts)
    for node in program.nodes:
        if node not in main:
            continue
        spans[-1].append(node)
        if uses.get(node):
            live.add(node)
        for used in {*node.all_input_nodes} & uses.keys():
            uses[used] -= 1
            if not uses[used]:
                live.discard(used)
        if len(live) == 1 and _is_float(next(iter(live))):
            spans.append([])
    return [span for span in spans if span]


def _shortcuts_of_inputs(main: set[Node]) -> set[Node]:
    found = set()
    for node in main:
        operands = node.all_input_nodes
        if node.target is aten.add.Tensor and len(operands) == 2 and len({*operands} & main) == 1:
            (other,) = {*operands} - main
            if _is_float(other) and same_shape(*operands):
                found.add(other)
    return found


def _merged(
    spans: list[list[Node]], program: Program, main: set[Node], parameters: set[str]
) -> list[list[Node]]:
    """Join spans without matrices of weights to the one before, or after where shapes change."""
    matrices = {
        node
        for node, name in program.tensors.items()
        if name in parameters and node.meta["val"].ndim > 1
    }
    merged: list[list[Node]] = []
    pending: list[Node] = []
    for span in spans:
        if _uses(span, matrices, main):
            merged.append([*pending, *span])
            pending = []
        elif merged and not pending and _keeps_shape(span):
            merged[-1].extend(span)
        else:
            pending.extend(span)
    if pending and merged:
        merged[-1].extend(pending)
        pending = []
    return merged + ([pending] if pending else [])


def _with_attention(spans: list[list[Node]]) -> list[list[Node]]:
    """Join each span that computes attention with the next, if that one does not."""
    joined: list[list[Node]] = []
    is_open = False
    for span in spans:
        attends = any(node.target in _ATTENTION for node in span)
        if is_open and not attends:
            joined[-1].extend(span)
        else:
            joined.append(list(span))
        is_open = attends
    return joined


def _block(span: Sequence[Node], program: Program, main: set[Node], parameters: set[str]) -> Block:
    own = {*span}
    needed: set[Node] = set()
    used: set[str] = set()
    remaining = list(span)
    while remaining:
        node = remaining.pop()
        if node in needed or (node in main and node not in own):
            continue  # seen, or a value of an earlier block
        if program.tensors.get(node) in parameters:
            used.add(program.tensors[node])
        needed.add(node)
        remaining.extend(node.all_input_nodes)
    outputs = {*program.outputs}
    nodes = tuple(node for node in program.nodes if node in needed)
    return Block(
        nodes,
        tuple(
            node
            for node in span
            if node in outputs or any(user in main and user not in own for user in node.users)
        ),
        tuple(name for node, name in program.tensors.items() if name in used),
    )


def _uses(span: Sequence[Node], matrices: set[Node], main: set[Node]) -> bool:
    """Whether an operator of the span computes with a matrix, or what was made of it."""
    seen: set[Node] = set()
    inside, remaining = {*span}, list(span)
    while remaining:
        node = remaining.pop()
        if node in matrices:
            return True
        if node not in seen and (node in inside or node not in main):
            seen.add(node)
            if node.target not in _ELEMENTWISE:
                remaining.extend(node.all_input_nodes)
    return False


def _keeps_shape(span: Sequence[Node]) -> bool:
    inside = {*span}
    entering = [
        n
        for node in span
        for n in node.all_input_nodes
        if n not in inside and n.op == "call_function" and _is_tensor(n)
    ]
    tensors = [node for node in (*entering, span[-1]) if isinstance(node.meta["val"], Tensor)]
    return span[-1] in tensors and any(same_shape(node, span[-1]) for node in tensors[:-1])


def _is_tensor(node: Node) -> bool:
    """Whether a node's value is a tensor, or several, rather than the length of an axis."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
