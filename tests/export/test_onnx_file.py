import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mfac_compress.export import export_onnx, open_session, parity_error, replace


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(2, 6) + 1


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


class Number(nn.Module):
    def forward(self, x):
        return x, {"rows": len(x)}


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x, need_weights=False)[0]


class LearnedBias(nn.Module):
    """Attention with a bias that is a parameter, as in T5, Swin and BEiT."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x):
        heads = x.unflatten(-1, (2, 2)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(
            heads, heads, heads, attn_mask=self.bias[None]
        )
        return mixed.transpose(1, 2).reshape(x.shape)


def initializers(path):
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def axes(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_only_the_batch_axis_is_dynamic(pruned):
    graph = onnx.load(pruned.path).graph
    assert (graph.input[0].name, axes(graph.input[0])) == ("input", ["batch", 3, 4, 4])
    assert (graph.output[0].name, axes(graph.output[0])) == ("output", ["batch", 5])


def test_one_row_is_enough_for_a_dynamic_batch(tmp_path):
    model = Attention()  # the tracer treats its batch of one as a constant
    export_onnx(model, torch.randn(1, 3, 4), tmp_path / "m.onnx")
    assert parity_error(model, tmp_path / "m.onnx", torch.randn(5, 3, 4)) < 1e-5


def test_attention_with_a_learned_bias_is_exported(tmp_path):
    model = LearnedBias()
    with torch.enable_grad():
        export_onnx(model, torch.randn(2, 3, 4), tmp_path / "m.onnx")
    assert parity_error(model, tmp_path / "m.onnx", torch.randn(5, 3, 4)) < 1e-5


def test_every_zero_is_positive_in_the_file_and_as_it_was_in_the_model(pruned):
    weights = pruned.model.conv.weight.detach()
    assert (weights.signbit() & (weights == 0)).any()
    for name, array in initializers(pruned.path).items():
        tensor = torch.from_numpy(array.copy())
        assert not (tensor.signbit() & (tensor == 0)).any(), name


def test_initializers_have_the_names_of_the_parameters(pruned):
    found = initializers(pruned.path)
    assert {"grouped.weight", "point.weight", "point.bias", "head.weight"} <= found.keys()
    for name in ("mix", "square"):
        weight = pruned.model.get_parameter(f"{name}.weight").detach()
        assert torch.equal(torch.from_numpy(found[f"{name}.weight.T"].copy()).T, weight)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_layers_of_which_nothing_is_left_have_weights_of_their_own(tmp_path, shape):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    for layer in model:
        nn.init.zeros_(layer.weight)
    export_onnx(model, torch.randn(shape), tmp_path / "m.onnx")
    names = [
        name.removesuffix(".T")
        for name, a in initializers(tmp_path / "m.onnx").items()
        if a.ndim == 2
    ]
    assert sorted(names) == ["0.weight", "1.weight", "2.weight"]


class Twice(nn.Module):
    """Calls a layer twice."""

    def __init__(self, width):
        super().__init__()
        self.shared, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.last(self.shared(self.shared(x)))


@pytest.mark.parametrize("width", [4, 48])
def test_a_layer_that_is_called_twice_has_one_weight(tmp_path, width):
    model = Twice(width)
    export_onnx(model, torch.randn(2, 3, width), tmp_path / "m.onnx")
    found = initializers(tmp_path / "m.onnx")
    matrices = sorted(name for name, array in found.items() if array.ndim == 2)
    assert matrices == ["last.weight.T", "shared.weight.T"]
    assert parity_error(model, tmp_path / "m.onnx", torch.randn(5, 3, width)) < 1e-5


def test_the_file_carries_the_metadata_and_nothing_of_the_machine(pruned):
    model = onnx.load(pruned.path)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"sparsity": "0.8"}
    assert b"conftest.py" not in pruned.path.read_bytes()


def test_the_same_model_gives_the_same_bytes(pruned, tmp_path):
    again = tmp_path / pruned.path.name
    export_onnx(pruned.model, torch.ones(4, 3, 4, 4), again, metadata={"sparsity": "0.8"})
    assert again.read_bytes() == pruned.path.read_bytes()


def test_exporting_leaves_modes_and_weights_and_prints_nothing(tmp_path, capfd, recwarn):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.Dropout()).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, torch.randn(1, 1, 5, 5), tmp_path / "m.onnx")
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert parity_error(model, tmp_path / "m.onnx", torch.randn(3, 1, 5, 5)) < 1e-5


def test_large_tensors_become_external_data_and_are_removed_with_it(tmp_path, monkeypatch):
    model = nn.Linear(64, 16)
    path = tmp_path / "m.onnx"
    inputs = torch.randn(3, 64)
    monkeypatch.setattr(replace, "MAX_BYTES_IN_ONE_FILE", 4 * 64 * 16)
    export_onnx(model, inputs, path)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert path.stat().st_size < 4 * 64 * 16
    assert parity_error(model, path, inputs) < 1e-5
    monkeypatch.undo()
    export_onnx(model, inputs, path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert parity_error(model, path, inputs) < 1e-5


def test_data_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"of something else")
    with pytest.raises(ValueError, match=r"m\.onnx\.data must be free"):
        export_onnx(nn.Linear(4, 2), torch.randn(2, 4), tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx.data"]
    assert (tmp_path / "m.onnx.data").read_bytes() == b"of something else"


def test_a_graph_that_fails_the_checker_does_not_replace_the_file(tmp_path, monkeypatch):
    def refuse(path):
        raise onnx.checker.ValidationError("not today")

    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ValueError, match="not today"):
        export_onnx(nn.Linear(4, 2), torch.randn(2, 4), path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("model", "shape", "options", "message"),
    [
        (Number(), (2, 6), {}, "a tuple or dict of tensors. Got int"),
        (Total(), (2, 6), {}, r"one row per sample. Got an output of shape \[\]"),
        (nn.Linear(4, 2), (2, 6), {}, r"shape \[2, 6\]. It raised RuntimeError"),
        (Fixed(), (2, 6), {}, "dynamic batch not possible.*export.dynamic_batch: false"),
        (Branch(), (2, 6), {}, "torch.where instead of if"),
        (Eigenvalues(), (2, 6, 6), {}, "aten.linalg_eig[^$]*Replace the operator"),
        (nn.Linear(6, 2), (2, 6), {"opset": 99}, "Set export.opset: 18"),
        (nn.Linear(6, 2), (2, 6), {"input_name": "weight"}, "export.input_name.*'weight'"),
        (nn.Linear(6, 2), (2, 6), {"output_name": "input"}, "export.output_name.*'input'"),
    ],
)
def test_a_model_that_cannot_be_exported_gives_an_error_and_no_file(
    model, shape, options, message, tmp_path, capfd
):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, torch.randn(shape), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_is_exported_on_request(tmp_path):
    export_onnx(Fixed(), torch.randn(2, 6), tmp_path / "m.onnx", dynamic_batch=False)
    assert open_session(tmp_path / "m.onnx").get_inputs()[0].shape == [2, 6]


def test_the_opset_and_names_are_those_asked_for(tmp_path):
    path = tmp_path / "m.onnx"
    names = {"input_name": "image", "output_name": "logits"}
    export_onnx(nn.Linear(4, 2), torch.randn(2, 4), path, opset=20, **names)
    model = onnx.load(path)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("image", "logits")


def test_the_module_of_an_exported_program_is_exported_as_any_other(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    example = torch.randn(4, 1, 5, 5)
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    export_onnx(program, example, tmp_path / "m.onnx")
    assert "0.weight" in initializers(tmp_path / "m.onnx")
    assert parity_error(program, tmp_path / "m.onnx", torch.randn(3, 1, 5, 5)) < 1e-5


@pytest.mark.parametrize("rows", [1, 4])
def test_the_module_of_a_program_with_a_fixed_batch_is_refused_as_dynamic(rows, tmp_path):
    example = torch.randn(rows, 6)
    program = torch.export.export(nn.Linear(6, 2).eval(), (example,)).module()
    with pytest.raises(ValueError, match="dynamic batch not possible"):
        export_onnx(program, example, tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_float_types_keep_their_type(dtype, tmp_path):
    model = nn.Linear(4, 2).to(dtype)
    with torch.no_grad():
        model.weight[0] = -0.0
    export_onnx(model, torch.randn(2, 4, dtype=dtype), tmp_path / "m.onnx")
    weight = initializers(tmp_path / "m.onnx")["weight"]
    assert torch.equal(torch.from_numpy(weight.copy()), model.weight.detach())
    assert not torch.from_numpy(weight[0].copy()).signbit().any()
    assert isinstance(open_session(tmp_path / "m.onnx"), onnxruntime.InferenceSession)


def test_the_memory_order_of_the_example_leaves_no_trace(tmp_path):
    """NumPy gives an added channel axis the stride 1, which PyTorch takes for channels-last."""
    example = torch.rand(2, 64).as_strided((2, 1, 8, 8), (64, 1, 8, 1))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    export_onnx(model, example, tmp_path / "net.onnx")

    operators = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert not operators & {"Gather", "Range"}
