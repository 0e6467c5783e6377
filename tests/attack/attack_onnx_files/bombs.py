"""Files that take for ever, or all memory: loops, growth, and what is deep."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from attack_onnx_files import nets
from attack_onnx_files.case import ANY, REFUSED, TAKEN, Case, of_model

_SHORT = ("--timeout", "3")


def kinds() -> Iterator[Case]:
    """Each once."""
    yield from _endless()
    yield from _deep()


def _endless() -> Iterator[Case]:
    def loop(trips: int, by_condition: bool) -> onnx.ModelProto:
        made = nets.branches()
        node = made.graph.node[-1]
        if by_condition:
            node.input[0] = ""
        next(t for t in made.graph.initializer if t.name == "trips").CopyFrom(
            numpy_helper.from_array(np.array(trips), "trips")
        )
        return made

    for trips in (2**31, 2**62, 2**63 - 1):
        yield of_model(f"a loop of {trips}", partial(loop, trips, False), REFUSED, _SHORT)
    yield of_model("a loop without an end", partial(loop, 1, True), REFUSED, _SHORT)
    yield of_model("a loop of -1", partial(loop, -1, False), TAKEN)

    def grown(kind: str, times: int) -> onnx.ModelProto:
        nodes, name = [], "w"
        for n in range(times):
            reads = [name, name] if kind == "Concat" else [name, "twice"]
            given = {"axis": 0} if kind == "Concat" else {}
            nodes.append(helper.make_node(kind, reads, [f"v{n}"], **given))
            name = f"v{n}"
        nodes += [
            helper.make_node("ReduceSum", [name], ["s"]),
            helper.make_node("Add", ["x", "s"], ["y"]),
        ]
        tensors = {"w": nets.weight(64, 64), "twice": np.array([2, 1])}
        return nets.model(nodes, ["n", 4], tensors)

    for kind, times in itertools.product(("Concat", "Tile"), (4, 60)):
        codes = TAKEN if times == 4 else REFUSED
        yield of_model(
            f"{kind}, {times} times", partial(grown, kind, times), codes, ("--timeout", "10")
        )

    def filled(shape: list[int], kind: str) -> onnx.ModelProto:
        reads = ["shape"] if kind == "ConstantOfShape" else ["one", "shape"]
        nodes = [
            helper.make_node(kind, reads, ["s"]),
            helper.make_node("MatMul", ["x", "s"], ["y"]),
        ]
        return nets.model(nodes, ["n", 4], {"shape": np.array(shape), "one": np.float32(1)})

    for shape in ([4, 8], [4, 2**40], [2**62, 2**62], [-4, 4], [4, 0]):
        for kind in ("ConstantOfShape", "Expand"):
            codes = TAKEN if shape == [4, 8] else ANY if shape == [4, 0] else REFUSED
            yield of_model(
                f"{kind} of {shape}", partial(filled, shape, kind), codes, ("--timeout", "10")
            )


def _deep() -> Iterator[Case]:
    def calls(levels: int, times: int, circle: bool) -> onnx.ModelProto:
        made = []
        for n in range(levels):
            last = n == levels - 1
            called = "Neg" if last and not circle else f"f{0 if last else n + 1}"
            nodes = [
                helper.make_node(called, ["x" if k == 0 else f"v{k - 1}"], [f"v{k}"],
                                 domain="" if called == "Neg" else "own")
                for k in range(times)
            ]  # fmt: skip
            opsets = [*nets.OPSETS, helper.make_opsetid("own", 1)]
            made.append(
                helper.make_function("own", f"f{n}", ["x"], [f"v{times - 1}"], nodes, opsets)
            )
        call = [helper.make_node("f0", ["x"], ["y"], domain="own")]
        return nets.model(call, ["n", 4], {}, functions=made, domains=["own"])

    yield of_model("functions, 3 levels of 3", partial(calls, 3, 3, False), TAKEN)
    for levels, times in ((12, 10), (30, 2), (60, 2), (6, 60), (3000, 1)):
        yield of_model(
            f"functions, {levels} levels of {times}", partial(calls, levels, times, False), REFUSED
        )
    for levels in (1, 2, 5):
        yield of_model(
            f"functions in a circle of {levels}", partial(calls, levels, 2, True), REFUSED
        )

    def nested(levels: int) -> onnx.ModelProto:
        info = [helper.make_tensor_value_info("o", 1, None)]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "g", [], info)
        for _ in range(levels):
            node = helper.make_node("If", ["yes"], ["o"], then_branch=graph, else_branch=graph)
            graph = helper.make_graph([node], "g", [], info)
        node = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)
        return nets.model([node], ["n", 4], {"yes": np.array(True)})

    for levels in (2, 8):
        yield of_model(f"If, {levels} levels", partial(nested, levels), TAKEN)

    def within(levels: int, folder: Path) -> Path:
        """Written by hand: what makes a model counts its levels, too."""

        def field(number: int, content: bytes) -> bytes:
            size, digits = len(content), b""
            while size > 127:
                digits, size = digits + bytes([size % 128 + 128]), size // 128
            return bytes([number * 8 + 2]) + digits + bytes([size]) + content

        graph = b""
        for _ in range(levels):
            attribute = field(1, b"body") + field(6, graph) + b"\xa0\x01\x05"
            graph = field(1, field(4, b"If") + field(5, attribute))
        (folder / "model.onnx").write_bytes(b"\x08\x09" + field(7, graph))
        return folder / "model.onnx"

    for levels in (10, 30, 100, 1000):
        yield Case(f"graphs, {levels} levels", partial(within, levels), REFUSED)

    def chain(kind: str, length: int, of_constant: bool) -> onnx.ModelProto:
        names = ["w" if of_constant else "x", *(f"v{n}" for n in range(length))]
        nodes = [helper.make_node(kind, [a], [b]) for a, b in itertools.pairwise(names)]
        nodes.append(helper.make_node("MatMul", ["x", names[-1]], ["y"]) if of_constant
                     else helper.make_node("Neg", [names[-1]], ["y"]))  # fmt: skip
        return nets.model(nodes, [4, 4], {"w": nets.weight(4, 4)})

    for kind, constant in itertools.product(("Identity", "Abs"), (False, True)):
        yield of_model(f"3000 {kind}, {constant}", partial(chain, kind, 3000, constant), TAKEN)
