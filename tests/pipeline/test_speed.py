"""``mfac-compress speed``: any ONNX file, and a way out of every mistake."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mfac_compress.export import Interval, sparse_session
from mfac_compress.export.sparse import library
from mfac_compress.pipeline.cli import main


@pytest.fixture
def file(tmp_path):
    """Token ids of an open length, a table, and a layer that is mostly zeros."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((16, 8)) * (rng.random((16, 8)) < 0.2)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "layer.weight"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(rng.standard_normal((5, 16)).astype(np.float32), "table"),
        numpy_helper.from_array(weight, "layer.weight"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", 8])
    graph = helper.make_graph(nodes, "g", [ids], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def faster(sparse_takes):
    return sparse_takes


def _speed(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["speed", *map(str, arguments)])


def test_layers_times_and_the_whole_are_shown(file, faster):
    faster(0.5)
    result = _speed(file, "--shape", "ids=1,7", "--batch", "1,4", "--threads", "1,2")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "layer.weight" in line]
    assert line.count("(2.00x)") == 4
    assert "16 x 8" in line
    assert result.output.count("whole model, batch") == 4


def test_the_sparse_file_is_written_on_request(file, faster, tmp_path):
    faster(0.5)
    output = tmp_path / "out.onnx"
    result = _speed(file, "--shape", "ids=1,7", "-o", output)
    assert result.exit_code == 0, result.output
    ids = np.array([[1, 4, 2]])
    expected = sparse_session(file).run(None, {"ids": ids})[0]
    np.testing.assert_allclose(
        sparse_session(output).run(None, {"ids": ids})[0], expected, rtol=0, atol=1e-5
    )


def test_no_file_is_written_where_nothing_is_faster(file, faster, tmp_path):
    faster(2.0)
    result = _speed(file, "--shape", "ids=1,7", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert "not written" in result.output
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (Interval(0.95, 0.9, 1.05), "no sparse file: no speed-up at batch 1, 1 thread"),
        (Interval(0.95, 0.5, 1.5), "no sparse file: the machine is too noisy to judge"),
    ],
)
def test_what_is_written_is_faster_in_the_comparison_that_is_shown(
    file, faster, tmp_path, compared, said
):
    faster(0.5, compared)
    result = _speed(file, "--shape", "ids=1,7", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert said in result.output
    assert "the model as a whole was not shown to be faster" in result.output
    assert "whole model, as tried, batch 1" in result.output
    assert not (tmp_path / "out.onnx").exists()


def test_without_the_library_it_shows_what_it_can(file, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "none.so")
    result = _speed(file, "--shape", "ids=1,7")
    assert result.exit_code == 0
    assert "MACs in theory" in result.output
    assert "must be built" in result.output
    refused = _speed(file, "--shape", "ids=1,7", "-o", "out.onnx")
    assert refused.exit_code == 2
    assert "-o needs the sparse kernels" in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "for example ids=1,128"),
        (["--shape", "ids=1"], "must fit"),
        (["--shape", "mask=1,7"], "inputs ids"),
        (["--shape", "ids"], "must be like ids=1,128"),
        (["--shape", "ids=1,x"], "whole numbers"),
        (["--shape", "ids=1,7", "--batch", "0"], "whole numbers"),
        (["--shape", "ids=1,7", "--threads", "two"], "whole numbers"),
        (["--shape", "ids=1,7", "--threads", "1,100000"], "--threads must be at most 1024"),
        (["--shape", "ids=1,7", "-o", "/no/such/folder/out.onnx"], "folder that exists"),
    ],
)
def test_mistakes_end_with_2_and_say_what_to_do(file, faster, arguments, said):
    result = _speed(file, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_files_that_are_none_end_with_2(file, tmp_path, faster):
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    os.mkfifo(tmp_path / "pipe.onnx")
    for path, must in (
        (text, "must be an ONNX file"),
        (tmp_path / "none.onnx", "must be an ONNX file"),
        (tmp_path / "pipe.onnx", "must be an ordinary file"),
    ):
        result = _speed(path)
        assert result.exit_code == 2
        assert must in result.output
    assert _speed(file, "--shape", "ids=1,7", "-o", file).exit_code == 2


def test_a_file_that_has_sparse_operators_already_is_refused(file, faster, tmp_path):
    faster(0.5)
    _speed(file, "--shape", "ids=1,7", "-o", tmp_path / "out.onnx")
    result = _speed(tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert "sparse operators already" in result.output


def _plain(path, *shape, dtype=TensorProto.FLOAT, **save):
    """y = x @ w, with w mostly zeros."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weight = (np.arange(256).reshape(16, 16) % 8 == 0).astype(kind)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, [*shape, 16])],
        [helper.make_tensor_value_info("y", dtype, [*shape, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, **save)
    return path


@pytest.mark.parametrize(
    ("data", "output"),
    [("w.bin", "w.bin"), ("out.onnx.data", "out.onnx"), ("w.bin", "link.onnx")],
)
def test_what_the_model_consists_of_is_never_replaced(faster, tmp_path, data, output):
    faster(0.5)
    path = _plain(tmp_path / "m.onnx", "n", save_as_external_data=True, location=data,
                  size_threshold=0)  # fmt: skip
    (tmp_path / "link.onnx").symlink_to(tmp_path / data)
    before = (tmp_path / data).read_bytes()
    result = _speed(path, "-o", tmp_path / output)
    assert result.exit_code == 2
    assert "external data files" in result.output
    assert (tmp_path / data).read_bytes() == before


def test_a_model_named_like_the_data_of_the_output_is_kept(faster, tmp_path):
    faster(0.5)
    path = _plain(tmp_path / "m.onnx.data", "n")
    assert _speed(path, "-o", tmp_path / "m.onnx").exit_code == 2
    assert path.is_file()


def test_a_file_in_the_place_of_the_data_is_named_before_measuring(faster, tmp_path):
    (tmp_path / "out.onnx.data").write_bytes(b"of something else")
    result = _speed(_plain(tmp_path / "m.onnx", "n"), "-o", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert "out.onnx.data must be free" in result.output
    assert "zeros" not in result.output


@pytest.mark.parametrize("output", ["", "folder", "/proc/out.onnx", "pipe", "n" * 251])
def test_where_nothing_can_be_written_is_said_before_measuring(faster, tmp_path, output):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    result = _speed(_plain(tmp_path / "m.onnx", "n"), "-o", tmp_path / output)
    assert result.exit_code == 2
    assert "-o must be" in result.output
    assert "zeros" not in result.output


def test_what_onnx_runtime_takes_is_written_though_the_checker_refuses_it(faster, tmp_path):
    """It asks for the shape of an output, which ONNX Runtime does not need."""
    faster(0.5)
    plain = onnx.load(_plain(tmp_path / "m.onnx", "n"))
    plain.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(plain, tmp_path / "open.onnx")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(tmp_path / "open.onnx")
    result = _speed(tmp_path / "open.onnx", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    x = np.ones((2, 16), np.float32)
    expected, found = (
        sparse_session(tmp_path / name).run(None, {"x": x})[0] for name in ("m.onnx", "out.onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_onnx_runtime_has_optimised_is_written_too(faster, tmp_path):
    """Its own operators are none that the ONNX checker knows."""
    faster(0.5)
    path = _optimised(tmp_path, "ORT_ENABLE_EXTENDED")
    result = _speed(path, "--shape", "x=1,16,6,5", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    assert "give the file before optimisation" in result.output
    x = np.random.default_rng(0).standard_normal((2, 16, 7, 5), dtype=np.float32)
    expected, found = (
        sparse_session(tmp_path / name).run(None, {"x": x})[0]
        for name in ("model.onnx", "out.onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_model_that_ends_at_one_batch_size_only_is_ended(faster, tmp_path):
    """Its shapes are looked at with a batch of 2, too, which nobody asked for."""
    model = onnx.load(_endless(tmp_path / "m.onnx"))
    before = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Sub", ["size", "one"], ["others"]),
        helper.make_node("Mul", ["others", "most"], ["trips"]),
        helper.make_node("MatMul", ["x", "w"], ["unused"]),
    ]
    nodes = [*before, *model.graph.node]
    nodes[-1].input[0] = "trips"
    tensors = {"one": np.array([1]), "most": np.array([2**62]), "w": np.ones((1, 1), np.float32)}
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "m.onnx")
    result = _speed(tmp_path / "m.onnx", "--timeout", 3)
    assert result.exit_code == 0, result.output


def test_names_do_not_reach_the_terminal_as_they_are(faster, tmp_path):
    model = onnx.load(_plain(tmp_path / "m.onnx", "n"))
    name = model.graph.initializer[0].name = model.graph.node[0].input[1] = "\x1b[31m[bold]\u202e"
    onnx.save(model, tmp_path / "m.onnx")
    result = _speed(tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    assert name not in result.output
    assert "\\x1b[31m[bold]\\u202e" in result.output


def test_what_is_left_out_of_the_macs_is_said(faster, tmp_path):
    faster(0.5)
    result = _speed(_optimised(tmp_path, "ORT_ENABLE_ALL"), "--shape", "x=1,16,6,5")
    assert result.exit_code == 0, result.output
    assert "without 2 layers of whose MACs nothing is known" in result.output


def _optimised(folder, level):
    """Two convolutions, as ONNX Runtime writes them."""
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((16, 16, 3, 3)) * (rng.random((16, 16, 3, 3)) < 0.1)).astype("f4")
        for _ in range(2)
    ]
    images = [helper.make_tensor_value_info(n, 1, ["n", 16, "h", "w"]) for n in "xy"]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1] * 4),
    ]
    tensors = [numpy_helper.from_array(w, n) for w, n in zip(weights, "vw", strict=True)]
    graph = helper.make_graph(nodes, "g", images[:1], images[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "model.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return folder / "model.onnx"


def _endless(path, trips=2**62):
    """y = x + x + x ..."""
    infos = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []),
            ("more", TensorProto.BOOL, []), ("v", 1, [1]), ("s", 1, [1]), ("x", 1, [1]),
            ("y", 1, [1]),
        )
    }  # fmt: skip
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["more"]),
            helper.make_node("Add", ["v", "v"], ["s"]),
        ],
        "body",
        [infos[name] for name in ("i", "go", "v")],
        [infos[name] for name in ("more", "s")],
    )
    tensors = [numpy_helper.from_array(np.array(v), n) for n, v in (("n", trips), ("t", True))]
    loop = helper.make_node("Loop", ["n", "t", "x"], ["y"], body=inner)
    graph = helper.make_graph([loop], "g", [infos["x"]], [infos["y"]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_a_model_that_does_not_end_is_ended(tmp_path):
    result = _speed(_endless(tmp_path / "m.onnx"), "--timeout", 1)
    assert result.exit_code == 2
    assert "A call did not end" in result.output
    assert "--timeout" in result.output
    assert _speed(_endless(tmp_path / "short.onnx", trips=3), "--timeout", 60).exit_code == 0
    assert _speed(tmp_path / "short.onnx", "--timeout", "nan").exit_code == 2


@pytest.mark.parametrize("batch", [999_999_999_999, 10**18, 10**30])
def test_a_batch_beyond_memory_names_the_option(faster, tmp_path, batch):
    result = _speed(_plain(tmp_path / "m.onnx", "n"), "--batch", batch)
    assert result.exit_code == 2
    assert "--batch, --shape: Inputs must fit into memory" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "ids=1,7", "--shape", "ids=1,9"],
        ["--shape", "ids=3,7", "--batch", "2,4"],
    ],
)
def test_what_contradicts_itself_is_refused(file, faster, arguments):
    result = _speed(file, *arguments)
    assert result.exit_code == 2
    assert "--shape must be" in result.output


def test_the_first_number_of_a_shape_is_the_batch_where_none_is_given(file, faster):
    faster(0.5)
    assert "batch 3, 1 thread" in _speed(file, "--shape", "ids=3,7").output


def test_an_input_of_any_number_of_axes_is_taken_in_the_shape_that_is_given(faster, tmp_path):
    faster(0.5)
    model = onnx.load(_plain(tmp_path / "m.onnx", "n"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    refused = _speed(tmp_path / "m.onnx")
    assert refused.exit_code == 2
    assert "--shape: The shape of input x must be known" in refused.output
    assert "for example x=1,128" in refused.output
    result = _speed(tmp_path / "m.onnx", "--shape", "x=3,16")
    assert result.exit_code == 0, result.output
    assert "whole model, batch 3" in result.output


def test_a_model_of_another_type_is_not_said_to_lack_zeros(faster, tmp_path):
    result = _speed(_plain(tmp_path / "m.onnx", "n", dtype=TensorProto.FLOAT16))
    assert result.exit_code == 0
    assert "enough zeros" not in result.output
    assert "no layer can be computed by a sparse operator" in result.output


def test_a_file_of_several_inputs_and_outputs_is_measured(faster, tmp_path):
    """As a token model's: two inputs of the same open length, one of which takes no part."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((16, 8)) * (rng.random((16, 8)) < 0.2)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "layer.weight"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2]),
    ]
    tensors = [
        numpy_helper.from_array(rng.standard_normal((5, 16)).astype(np.float32), "table"),
        numpy_helper.from_array(weight, "layer.weight"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("ids", "types")
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 8]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", "length", 1]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    path, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    faster(0.5)

    result = _speed(path, "--shape", "ids=1,7", "--shape", "types=1,7", "-o", output)

    assert result.exit_code == 0, result.output
    ids = np.array([[1, 4, 2]])
    sessions = [sparse_session(each) for each in (path, output)]
    for session in sessions:
        assert [one.name for one in session.get_inputs()] == ["ids", "types"]
    expected, found = (session.run(None, {"ids": ids, "types": ids}) for session in sessions)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
