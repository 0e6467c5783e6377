"""Hostile files of which it is known what is right."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from attack_onnx_files import nets
from attack_onnx_files.case import ANY, REFUSED, TAKEN, Case

_SHORT = ("--timeout", "3")


def kinds() -> Iterator[Case]:
    """Each once."""
    yield from _valid()
    yield from _no_files()
    yield from _external_data()
    yield from _endless()
    yield from _deep()
    yield from _wrong()
    yield from _odd()


def _file(make: Callable[[], onnx.ModelProto], folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(make().SerializeToString())
    return folder / "model.onnx"


def _case(
    name: str,
    make: Callable[[], onnx.ModelProto],
    codes: frozenset[int] = ANY,
    options: tuple[str, ...] = (),
) -> Case:
    return Case(name, partial(_file, make), codes, options)


def _valid() -> Iterator[Case]:
    for name, make in nets.ALL.items():
        yield _case(f"valid {name}", make, TAKEN)
        for level in ("BASIC", "EXTENDED", "ALL"):
            optimise = partial(_optimised, make, f"ORT_ENABLE_{level}")
            yield Case(f"{name}, optimised: {level}", optimise, frozenset({0, 1}))


def _optimised(make: Callable[[], onnx.ModelProto], level: str, folder: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "model.onnx")
    onnxruntime.InferenceSession(make().SerializeToString(), options)
    return folder / "model.onnx"


def _no_files() -> Iterator[Case]:
    def written(content: bytes, folder: Path) -> Path:
        (folder / "model.onnx").write_bytes(content)
        return folder / "model.onnx"

    def large(size: int, folder: Path) -> Path:
        with open(folder / "model.onnx", "wb") as file:
            file.truncate(size)
        return folder / "model.onnx"

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "model.onnx")
        return folder / "model.onnx"

    def listening(folder: Path) -> Path:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("model.onnx")
        finally:
            os.chdir(here)
        return folder / "model.onnx"

    def link(to: str, folder: Path) -> Path:
        (folder / "model.onnx").symlink_to(to)
        return folder / "model.onnx"

    contents = {
        "empty": b"", "text": b"no model", "NULs": bytes(4096), "ones": b"\xff" * 4096,
        "a pickle": b"\x80\x04K\x01.", "a zip": b"PK\x03\x04" + bytes(99), "JSON": b"{}",
        "a group without an end": b"\x0b" * 5000, "groups in groups": b"\x3b" * 100_000,
        "a length beyond the file": b"\x3a\xff\xff\xff\xff\x07",
        "a negative length": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "only a version": b"\x08\x09",
    }  # fmt: skip
    for name, content in contents.items():
        yield Case(f"no file: {name}", partial(written, content), REFUSED)
    for size in (2**31 - 1, 2**31, 2**33, 2**40):
        yield Case(f"no file: {size} NULs", partial(large, size), REFUSED)
    yield Case("no file: a pipe", pipe, REFUSED)
    yield Case("no file: a socket", listening, REFUSED)
    for to in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "model.onnx", "nowhere"):
        yield Case(f"no file: a link to {to}", partial(link, to), REFUSED)


def _external_data() -> Iterator[Case]:
    def make(entries: dict[str, str], dims: list[int], folder: Path) -> Path:
        made = nets.words()
        tensor = made.graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        if dims:
            tensor.dims[:] = dims
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        (folder / "w.bin").write_bytes(raw)
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
        with open(folder / "large", "wb") as file:
            file.truncate(2**42)
        return _file(lambda: made, folder)

    yield Case("external data", partial(make, {"location": "w.bin"}, []), TAKEN)
    for location in (
        "", ".", "..", "/dev/zero", "../w.bin", "/etc/passwd", "pipe", "zero", "nowhere", "w.bin/",
        "model.onnx/..", "a\0b", "w" * 5000, "C:\\w.bin", "\\\\host\\w.bin", "file:///w.bin",
    ):  # fmt: skip
        yield Case(
            f"external data in {location[:20]!r}",
            partial(make, {"location": location}, []),
            REFUSED,
        )
    for offset, length in itertools.product(
        ("0", "-1", "4", "384", str(2**63), str(2**64), "x", "1e3", "٣"), (None, "0", "-4", "384")
    ):
        if (offset, length) in (("0", None), ("0", "384")):
            continue
        entries = {"location": "w.bin", "offset": offset} | ({"length": length} if length else {})
        yield Case(f"external data at {offset}, {length}", partial(make, entries, []), REFUSED)
    yield Case(
        "external data of 4 TB",
        partial(make, {"location": "large"}, [2**20, 2**20]), REFUSED,
    )  # fmt: skip
    for dims in ([0, 0], [-1, 8], [2**62, 2**62], [8, 13], [96]):
        yield Case(f"external data of {dims}", partial(make, {"location": "w.bin"}, dims), REFUSED)


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
        yield _case(f"a loop of {trips}", partial(loop, trips, False), REFUSED, _SHORT)
    yield _case("a loop without an end", partial(loop, 1, True), REFUSED, _SHORT)
    yield _case("a loop of -1", partial(loop, -1, False), TAKEN)

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
        yield _case(
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
            yield _case(
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

    yield _case("functions, 3 levels of 3", partial(calls, 3, 3, False), TAKEN)
    for levels, times in ((12, 10), (30, 2), (60, 2), (6, 60), (3000, 1)):
        yield _case(
            f"functions, {levels} levels of {times}", partial(calls, levels, times, False), REFUSED
        )
    for levels in (1, 2, 5):
        yield _case(f"functions in a circle of {levels}", partial(calls, levels, 2, True), REFUSED)

    def nested(levels: int) -> onnx.ModelProto:
        info = [helper.make_tensor_value_info("o", 1, None)]
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "g", [], info)
        for _ in range(levels):
            node = helper.make_node("If", ["yes"], ["o"], then_branch=graph, else_branch=graph)
            graph = helper.make_graph([node], "g", [], info)
        node = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)
        return nets.model([node], ["n", 4], {"yes": np.array(True)})

    for levels in (2, 8):
        yield _case(f"If, {levels} levels", partial(nested, levels), TAKEN)

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
        yield _case(f"3000 {kind}, {constant}", partial(chain, kind, 3000, constant), TAKEN)


def _wrong() -> Iterator[Case]:
    def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[], onnx.ModelProto]:
        def make() -> onnx.ModelProto:
            made = nets.images()
            change(made)
            return made

        return make

    def rename(model: onnx.ModelProto, reads: str) -> None:
        model.graph.node[0].input[0] = reads

    def circle(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "y"

    def twice(model: onnx.ModelProto) -> None:
        model.graph.node.append(model.graph.node[0])

    def reverse(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    def no_shape(model: onnx.ModelProto) -> None:
        model.graph.input[0].ClearField("type")

    def weights(model: onnx.ModelProto, dims: list[int]) -> None:
        model.graph.initializer[4].dims[:] = dims

    changes = {
        "an input from nowhere": (partial(rename, reads="nowhere"), REFUSED),
        "an input without a name": (partial(rename, reads=""), REFUSED),
        "a circle": (circle, REFUSED),
        "a value made twice": (twice, REFUSED),
        "nodes in the wrong order": (reverse, ANY),
        "an input without a type": (no_shape, REFUSED),
        "no nodes": (lambda model: model.graph.ClearField("node"), REFUSED),
        "no graph": (lambda model: model.ClearField("graph"), REFUSED),
        "no opset": (lambda model: model.ClearField("opset_import"), REFUSED),
        "an opset of the future": (
            lambda model: setattr(model.opset_import[0], "version", 10_000), REFUSED),
        "a version of the future": (lambda model: setattr(model, "ir_version", 10_000), REFUSED),
        "an operator that there is not": (
            lambda model: setattr(model.graph.node[0], "op_type", "Conf"), REFUSED),
        "an operator of a domain that there is not": (
            lambda model: setattr(model.graph.node[0], "domain", "nowhere"), REFUSED),
        "weights of other dims": (partial(weights, dims=[8, 3, 3, 4]), REFUSED),
        "weights of negative dims": (partial(weights, dims=[-8, -3, 3, 3]), REFUSED),
        "weights of dims beyond 64 bits": (partial(weights, dims=[2**62] * 4), REFUSED),
        "no outputs": (lambda model: model.graph.ClearField("output"), ANY),
        "no inputs": (lambda model: model.graph.ClearField("input"), REFUSED),
    }  # fmt: skip
    for name, (change, codes) in changes.items():
        yield _case(f"wrong: {name}", changed(change), codes)

    def renamed(name: bytes, folder: Path) -> Path:
        content = nets.sound().SerializeToString()
        assert b"\x02w0" in content
        (folder / "model.onnx").write_bytes(content.replace(b"\x02w0", b"\x02" + name))
        return folder / "model.onnx"

    for name in (b"\xff\xfe", b"\xc0\x80", b"\x00\x00"):
        yield Case(f"a name of bytes {name.hex()}", partial(renamed, name), ANY)


def _odd() -> Iterator[Case]:
    """Valid, and seldom seen."""

    def named(name: str) -> onnx.ModelProto:
        made = nets.words()
        for node in made.graph.node[:1]:
            node.name = name
            node.input[1] = name
        made.graph.initializer[0].name = name
        return made

    for name in (
        "[bold]",
        "\x1b[31mred",
        "a\nb",
        "ä" * 3000,
        "{}%s",
        "../w",
        "\u202e",
        "x" * 10**5,
    ):
        yield _case(f"a weight named {name[:8]!r}", partial(named, name), TAKEN)

    def axes(shape: list[int | str | None]) -> onnx.ModelProto:
        return nets.model(
            [helper.make_node("Conv", ["x", "w"], ["y"])], shape, {"w": nets.weight(4, 3, 3, 3)}
        )

    for shape, codes in (
        ([-1, 3, -1, -1], REFUSED), ([-1, 3, 6, 6], TAKEN), ([0, 3, 6, 6], ANY), ([1, 3, 0, 6], REFUSED),
        ([-(2**63), 3, 6, 6], TAKEN), ([2**62, 3, 6, 6], REFUSED), ([1, 3, 2**40, 2**40], REFUSED),
        ([1, 4, 6, 6], REFUSED), ([], REFUSED), ([1, 3, 6, 6, 6], REFUSED),
    ):  # fmt: skip
        yield _case(f"an input of {shape}", partial(axes, shape), codes)
    open_shape = partial(axes, [-1, 3, -1, -1])
    yield _case("an input of -1 with a shape", open_shape, TAKEN, ("--shape", "x=1,3,9,9"))

    def typed(kind: int) -> onnx.ModelProto:
        return nets.model([helper.make_node("Identity", ["x"], ["y"])], ["n", 4], {}, kind=kind)

    for kind in range(1, 26):
        yield _case(f"an input of type {kind}", partial(typed, kind), ANY)

    def valued(value: float) -> onnx.ModelProto:
        w = nets.weight(8, 8)
        w[0, 0] = value
        return nets.model([helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", 8], {"w": w})

    for value in (np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0):
        yield _case(
            f"a weight of {value}", partial(valued, value), TAKEN if value == value else ANY
        )

    def conv(shape: tuple[int, ...], attributes: dict) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
        size = ["n", shape[1] * attributes.get("group", 1), *[9] * (len(shape) - 2)]
        return nets.model([node], size, {"w": nets.weight(*shape)})

    for shape in (
        (4, 3),
        (4, 3, 3),
        (4, 3, 3, 3),
        (4, 3, 3, 3, 3),
        (4, 3, 1, 3, 1, 3),
        (0, 3, 3),
        (4, 0, 3),
    ):
        yield _case(f"a convolution of {shape}", partial(conv, shape, {}), ANY)
    for attributes in (
        {"pads": [2**31, 0]}, {"pads": [-1, 0]}, {"pads": [40_000, 40_000]}, {"pads": [1]}, {"strides": [0]},
        {"strides": [2**40]}, {"dilations": [4]}, {"dilations": [5]}, {"dilations": [0]}, {"group": 2},
        {"group": 0}, {"group": -1}, {"group": 4}, {"kernel_shape": [2]}, {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "same"}, {"auto_pad": "VALID", "pads": [1, 1]}, {"auto_pad": "SAME_LOWER", "strides": [2]},
    ):  # fmt: skip
        yield _case(f"a convolution with {attributes}", partial(conv, (4, 3, 3), attributes), ANY)
