"""Files that would read endlessly, or from elsewhere, are refused before anything is read."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mfac_compress.export.sparse import limits
from mfac_compress.export.sparse.files import read_model


@pytest.fixture
def external(tmp_path):
    """Write a file whose weight is external data."""

    def write(inside=False, dims=(3, 4), kind=TensorProto.FLOAT, **where):
        tensor = TensorProto(name="w", dims=dims, data_type=kind, data_location="EXTERNAL")
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        if inside:
            node = helper.make_node("Constant", [], ["w"], value=tensor)
            model.functions.append(
                helper.make_function("own", "f", [], ["w"], [node], model.opset_import)
            )
        else:
            model.graph.initializer.append(tensor)
        (tmp_path / "w.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return write


def test_data_beside_the_file_are_read(external):
    for where in ({}, {"offset": 0}, {"length": 48}, {"offset": 0, "length": 48}):
        model = read_model(external(location="w.bin", **where))
        assert model.graph.initializers["w"].const_value.numpy()[2, 3] == 11


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "where",
    [
        {"location": "/dev/zero"},
        {"location": "../w.bin"},
        {"location": "a/../../w.bin"},
        {"location": "C:\\w.bin"},
        {"location": ""},
        {"location": "no.bin"},
        {"location": "w\0.bin"},
        {"location": "."},
        {"location": "pipe"},
        {"location": "zero"},
        {"location": "w.bin", "offset": -4},
        {"location": "w.bin", "offset": 4},
        {"location": "w.bin", "offset": 10**30},
        {"location": "w.bin", "length": 2**40},
        {"location": "w.bin", "length": 44},
        {"location": "w.bin", "length": "many"},
        {"location": "w.bin", "dims": (2**40, 2**40)},
    ],
    ids=str,
)
def test_data_anywhere_else_are_refused(external, tmp_path, where, inside):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="external data of tensor 'w'"):
        read_model(external(inside, **where))


def test_data_beyond_memory_are_refused(external, monkeypatch):
    class Little:
        available = 40

    monkeypatch.setattr(limits.psutil, "virtual_memory", Little)
    with pytest.raises(ValueError, match="48 bytes, and 40 bytes of memory are free"):
        read_model(external(location="w.bin"))


def test_numbers_of_four_bits_are_half_a_byte(external):
    kind = TensorProto.INT4
    assert read_model(external(location="w.bin", dims=(3, 32), kind=kind)).graph.initializers
    with pytest.raises(ValueError, match="Got 48 bytes"):
        read_model(external(location="w.bin", dims=(97,), kind=kind))


def test_a_path_that_is_not_a_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(ValueError, match="a folder, a device, a pipe"):
            read_model(path)
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match=r"2,147,483,648 bytes"):
        read_model(tmp_path / "large.onnx")


def _calling(*functions, file):
    """A file that calls the first of some functions, given as {name: functions it calls}."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = []
    for name, calls in functions:
        nodes = [
            helper.make_node(each, ["x"], [f"v{n}"], domain="own" if each.islower() else "")
            for n, each in enumerate(calls)
        ]
        made.append(helper.make_function("own", name, ["x"], ["v0"], nodes, opsets))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    call = helper.make_node(functions[0][0], ["x"], ["y"], domain="own")
    graph = helper.make_graph([call], "g", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=made), file)
    return file


def test_functions_are_counted_before_they_are_inlined(tmp_path):
    """Twelve that each call the next ten times."""
    levels = [(f"f{n}", [f"f{n + 1}"] * 10) for n in range(11)]
    file = _calling(*levels, ("f11", ["Neg"] * 10), file=tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="1,000,000,000,000 nodes"):
        read_model(file)
    assert read_model(_calling(*levels[8:], ("f11", ["Neg"] * 10), file=tmp_path / "m.onnx"))


def test_recursive_functions_are_refused(tmp_path):
    for circle in ([("f", ["f"])], [("f", ["g", "Neg"]), ("g", ["f"])]):
        with pytest.raises(ValueError, match="calls itself"):
            read_model(_calling(*circle, file=tmp_path / "m.onnx"))


def test_thousands_of_functions_that_call_one_another_are_refused(tmp_path):
    deep = [(f"f{n}", [f"f{n + 1}"]) for n in range(5000)]
    with pytest.raises(ValueError, match="too deeply"):
        read_model(_calling(*deep, ("f5000", ["Neg"]), file=tmp_path / "m.onnx"))
