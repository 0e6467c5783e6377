"""ONNX files as MODEL: pruned, and written back into what they were."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import nn

from mfac_compress.pipeline.inputs import onnx_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def files(project):
    """The project with its net as an ONNX file; its recipe needs no factory any more."""
    del project.recipe["model"]
    project.onnx = project.folder / "net.onnx"
    write(project.onnx, load_file(project.model))
    project.recipe["prune"]["include"] = ["0"]
    return project


def write(path, tensors, batch="N", **options):
    """The conftest's net: Gemm with its batch norm, Relu, and a MatMul with an addition."""
    inits = {
        "0.weight": tensors["0.weight"],
        "0.bias": tensors["0.bias"],
        **{
            name: tensors[f"1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        },
        "matrix": tensors["3.weight"].T,
        "shift": tensors["3.bias"],
    }
    nodes = [
        helper.make_node("Gemm", ["x.1", "0.weight", "0.bias"], ["a"], "gemm", transB=1),
        helper.make_node(
            "BatchNormalization", ["a", "weight", "bias", "running_mean", "running_var"], ["b"]
        ),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("MatMul", ["c", "matrix"], ["d"], "matmul"),
        helper.make_node("Add", ["d", "shift"], ["y"], "add"),
        *options.get("more", ()),
    ]
    names = ["y", *options.get("outputs", ())]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x.1", options.get("dtype", TensorProto.FLOAT), [batch, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, None]) for name in names],
        [numpy_helper.from_array(np.ascontiguousarray(t.numpy()), n) for n, t in inits.items()],
    )
    opset = helper.make_opsetid("", options.get("opset", 17))
    microsoft = helper.make_opsetid("com.microsoft", 1)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset, microsoft], ir_version=8).SerializeToString()
    )


def tensors_of(path):
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def without_weights(path):
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return model.SerializeToString()


def test_a_run_writes_weights_into_the_file_and_nothing_else(files):
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    dense, sparse = files.output / "dense.onnx", files.output / "model.onnx"
    assert dense.read_bytes() == files.onnx.read_bytes()
    assert len(sparse.read_bytes()) == len(files.onnx.read_bytes())
    assert without_weights(sparse) == without_weights(files.onnx)
    before, after = tensors_of(dense), tensors_of(sparse)
    assert (after["0.weight"] == 0).mean() == 0.5
    assert not np.array_equal(before["shift"], after["shift"])  # recovery trains it
    report = json.loads((files.output / "report.json").read_text())
    measured = report["variants"]["sparse"]
    assert measured["parity_error"] < 1e-5
    assert all(audit["intact"] for audit in measured["audit"])


def test_weights_that_are_transposed_in_the_file_are_found_there(files):
    files.recipe["prune"]["include"] = ["matrix"]
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    matrix = tensors_of(files.output / "model.onnx")["matrix"]
    assert matrix.shape == (16, 3)
    assert (matrix == 0).mean() == 0.5
    report = json.loads((files.output / "report.json").read_text())
    (audit,) = report["variants"]["sparse"]["audit"]
    assert (audit["name"], audit["intact"]) == ("matrix.weight", True)


def test_no_labels_and_no_training_are_needed(files):
    files.recipe["calibrate"]["labels"] = "model"
    files.recipe["recover"] = {"epochs": 0}
    files.recipe["reconstruct"] = {"method": "least_squares", "samples": 64}
    del files.recipe["data"]["splits"]["recovery"]
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("pattern", ["neurons", {"n": 2, "m": 4}])
def test_patterns_are_those_of_any_model(files, pattern):
    files.recipe["prune"] |= {"pattern": pattern, "include": ["matrix", "0"]}
    files.recipe["export"]["round_to"] = 1
    files.recipe["validate"]["gates"] = {"max_parity_error": 1e-3}
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    smaller = tensors_of(files.output / "model.onnx")["matrix"].shape
    assert smaller == ((8, 3) if pattern == "neurons" else (16, 3))


def test_dead_channels_go_only_where_the_recipe_says_so(files):
    files.recipe["prune"]["include"] = ["0", "matrix"]
    files.recipe["prune"]["sparsity"] = 0.9
    files.recipe["validate"]["gates"] = {}
    assert files.run("-q", model=files.onnx).exit_code == 0
    whole = tensors_of(files.output / "model.onnx")["0.weight"].shape
    files.recipe["export"]["remove_dead"] = True
    files.recipe["export"]["round_to"] = 1
    files.output = files.folder / "smaller"
    assert files.run("-q", model=files.onnx).exit_code == 0
    assert whole == (16, 6)
    assert tensors_of(files.output / "model.onnx")["0.weight"].shape < whole


def test_a_file_for_one_sample_stays_one(files):
    write(files.onnx, load_file(files.model), batch=1)
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 2
    assert "export.dynamic_batch must be false and validate.batch_size 1" in result.output
    files.recipe["export"]["dynamic_batch"] = False
    files.recipe["validate"]["batch_size"] = 1
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    shape = onnx.load(files.output / "model.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 1


def test_an_output_that_cannot_be_converted_stays_as_it_is(files):
    more = [helper.make_node("Gelu", ["c"], ["z"], "tail", domain="com.microsoft")]
    write(files.onnx, load_file(files.model), more=more, outputs=["z"])
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 2
    assert "Gelu 'tail' of com.microsoft" in result.output
    files.recipe["model"] = {"output": "y"}
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    assert len(onnx.load(files.output / "model.onnx").graph.output) == 2


def test_every_opset_is_read(files):
    for opset in (13, 15, 18, 19, 20, 21):
        write(files.onnx, load_file(files.model), opset=opset)
        result = files.run("-q", "--dry-run", model=files.onnx)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("opset", "quantize", "needed"),
    [
        (9, {"mode": "static", "per_channel": False}, "static needs opset 10 or later"),
        (12, {"mode": "static"}, "static by outputs needs opset 13 or later"),
        (12, {"mode": "static", "per_channel": False}, None),
        (9, {"mode": "dynamic"}, None),
        (13, {"mode": "static"}, None),
    ],
)
def test_a_file_whose_opset_has_no_operators_in_8_bits_is_refused(files, opset, quantize, needed):
    """Before any work: the file keeps its opset."""
    write(files.onnx, load_file(files.model), opset=opset)
    files.recipe["quantize"] = {"samples": 64, **quantize}
    result = files.run("-q", "--dry-run", model=files.onnx)
    assert result.exit_code == (2 if needed else 0), result.output
    assert needed is None or needed in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"factory": "net.py:net"}}, "model.factory must be left out"),
        ({"export": {"opset": 18}}, "export.opset must be left out"),
        ({"export": {"input_name": "x"}}, "export.input_name must be left out"),
        ({"export": {"dynamic_batch": False}}, "export.dynamic_batch must be true"),
        ({"export": {"dynamic_axes": {"x.1": {1: "w"}}}}, "axes that"),
        ({"export": {"dynamic_axes": {"x": {1: "w"}}}}, "must name inputs"),
        ({"prune": {"pattern": {"block": 4}, "permute": True}}, "prune.permute"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(files, change, said):
    for section, keys in change.items():
        files.recipe[section] = {**files.recipe.get(section, {}), **keys}
    result = files.run("-q", "--dry-run", model=files.onnx)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_data_of_another_type_is_refused(files):
    write(files.onnx, load_file(files.model), dtype=TensorProto.DOUBLE)
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_the_first_operator_that_differs_is_named(files, monkeypatch):
    from mfac_compress.export.from_onnx.registry import OPERATORS

    monkeypatch.setitem(OPERATORS, "Relu", lambda node: nn.functional.gelu)
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 2
    assert "The first operator that does is Relu 'relu'" in " ".join(result.output.split())


def test_the_digest_covers_external_data(tmp_path, files):
    model = onnx.load(files.onnx)
    onnx.save(
        model, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin",
        size_threshold=0,
    )  # fmt: skip
    result = files.run("-q", model=tmp_path / "big.onnx")
    assert result.exit_code == 0, result.output
    model = onnx.load(files.onnx)
    whole = onnx.load(files.output / "dense.onnx")
    for ours, theirs in zip(whole.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    content = (tmp_path / "big.onnx").read_bytes()
    first = onnx_model.Source.read(tmp_path / "big.onnx", content).external
    data = bytearray((tmp_path / "big.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "big.bin").write_bytes(data)
    assert onnx_model.Source.read(tmp_path / "big.onnx", content).external != first


def test_the_external_data_of_the_model_is_not_removed(files):
    """As of a dense.onnx of an earlier run, under another name in its directory."""
    (files.output / ".cache").mkdir(parents=True)
    model, data = files.output / "renamed.onnx", files.output / "dense.onnx.data"
    onnx.save(
        onnx.load(files.onnx), model, save_as_external_data=True, location=data.name,
        size_threshold=0,
    )  # fmt: skip
    result = files.run("-q", model=model)
    assert result.exit_code == 2
    assert "-o must not be the directory of MODEL" in result.output
    assert data.exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"onnx", b"\x08\x07:\x02\x0a\x7f"])
def test_damaged_files_are_refused(files, content):
    files.onnx.write_bytes(content)
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_traced_model_and_its_file_are_pruned_alike(files):
    """The same masks and weights, whether the net comes as a checkpoint or as a file."""
    files.recipe["recover"] = {"epochs": 0}
    files.recipe["prune"]["include"] = ["0", "3"]
    files.recipe["model"] = {"factory": "net.py:net"}
    result = files.run("-q")
    assert result.exit_code == 0, result.output
    traced = load_file(files.output / "model.safetensors")
    del files.recipe["model"]
    files.recipe["prune"]["include"] = ["0", "matrix"]
    files.output = files.folder / "of-the-file"
    result = files.run("-q", model=files.onnx)
    assert result.exit_code == 0, result.output
    found = load_file(files.output / "model.safetensors")
    torch.testing.assert_close(found["0.weight"], traced["0.weight"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["matrix.weight"], traced["3.weight"], rtol=1e-4, atol=1e-5)
    assert ir.load(files.output / "model.onnx").graph.name == "g"
