"""Programs of torch.export are read as they were written; nothing in them is run or imported."""

import copy
import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.exported_program import read_exported_program

pytestmark = pytest.mark.filterwarnings("ignore")
PATH = Path("program.pt2")


class Convolution(nn.Module):
    """Sizes of images stay open; a name that Python does not have; max of two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.layers = nn.ModuleDict({"a-b": nn.Linear(4, 3)})

    def forward(self, x):
        x = nn.functional.gelu(self.norm(self.conv(x)), approximate="tanh")
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.layers["a-b"](x.flatten(2).max(2).values)


class Attention(nn.Module):
    """A causal mask, a constant, a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, x):
        q, k, v = (z.unflatten(-1, (2, 4)).mT for z in self.qkv(x).split(8, -1))
        q, k, v = (z.permute(0, 3, 1, 2) for z in (q, k, v))
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = x.transpose(1, 2).flatten(2).mean(1)
        return self.out(x) * self.scale * torch.tensor([1.0, 2.0, 3.0])


class Branch(nn.Module):
    """torch.cond, a part without gradients, arithmetic on sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = torch.cond(x.sum() > 0, lambda z: self.first(z) + 1, lambda z: self.second(z) - 1, (x,))
        with torch.no_grad():
            z = y * 2
        return y + z.reshape(x.shape[0] * 2, -1).reshape(x.shape[0], -1)


class Words(nn.Module):
    """Integers in, an LSTM."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        states, _ = self.lstm(self.embedding(ids))
        return self.out(states[:, -1] + states.amax(1))


def exported(module, x, **dims):
    shapes = {0: torch.export.Dim("batch"), **{int(k[1:]): v for k, v in dims.items()}}
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=(shapes,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def changed(content, record, change):
    """The program with one JSON changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            said = old.read(name)
            if name.endswith(record):
                said = json.loads(said)
                change(said)
                said = json.dumps(said).encode()
            new.writestr(name, said)
    return buffer.getvalue()


def read(content):
    return read_exported_program(PATH, content, trust_pickle=False)


@pytest.fixture(scope="module")
def branch():
    torch.manual_seed(0)
    return exported(Branch(), torch.randn(2, 8))


@pytest.mark.parametrize(
    ("module", "x", "dims"),
    [
        (
            Convolution(),
            torch.randn(3, 1, 12, 16),
            {f"d{i}": torch.export.Dim(f"d{i}", min=8) for i in (2, 3)},
        ),
        (Attention(), torch.randn(3, 8, 8), {}),
        (Branch(), torch.randn(3, 8), {}),
        (Words(), torch.randint(0, 50, (3, 6)), {}),
    ],
)
def test_real_models_compute_the_same_after_they_were_written_anew(module, x, dims):
    loaded = read(exported(module, x, **dims))
    for size in (1, 5):
        more = x[:1].repeat(size, *[1] * (x.ndim - 1))
        assert torch.allclose(loaded(more), module(more), atol=1e-6)
    assert loaded.state_dict().keys() == module.state_dict().keys()


def test_parameters_stay_frozen_as_they_were_stored():
    module = Branch()
    module.first.requires_grad_(False)
    loaded = read(exported(module, torch.randn(2, 8)))
    trained = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert trained == ["second.weight", "second.bias"]


def test_a_program_of_a_gpu_is_read_without_one(branch):
    def to_gpu(said):
        for value in said.values() if isinstance(said, dict) else said:
            if isinstance(value, dict) and value.get("type") == "cpu" and "index" in value:
                value["type"], value["index"] = "cuda", 0
            elif isinstance(value, dict | list):
                to_gpu(value)

    moved = changed(changed(branch, "model.json", to_gpu), "_config.json", to_gpu)
    x = torch.randn(3, 8)
    assert torch.equal(read(moved)(x), read(branch)(x))


def test_guards_and_notes_are_left_out(branch, tmp_path):
    code = f"open({str(tmp_path / 'it_ran')!r}, 'w')"

    def change(said):
        said["guards_code"] = [code]
        for node in said["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {"source_fn_stack": f"x,{code}", "from_node": code}

    read(changed(branch, "model.json", change))(torch.randn(3, 8))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "text",
    ["[__import__('os').system('touch {}'), Symbol('s0')][1]", "9**9**9**9"],
)
def test_expressions_are_not_evaluated(text, branch, tmp_path):
    def change(said):
        for value in said["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text.format(tmp_path / "it_ran")

    with pytest.raises(InputError, match="the expression"):
        read(changed(branch, "model.json", change))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("name", ["linear", "x", "gt", "true_graph_0"])
def test_names_are_not_written_into_code(name, branch, tmp_path):
    code = f"x=open({str(tmp_path / 'it_ran')!r}, 'w')"
    records = zipfile.ZipFile(io.BytesIO(branch))
    record = next(n for n in records.namelist() if n.endswith("models/model.json"))
    assert f'"{name}"' in records.read(record).decode()

    def change(said):
        text = json.dumps(said).replace(f'"{name}"', json.dumps(code))
        said.clear()
        said.update(json.loads(text))

    with pytest.raises(InputError, match="must be a"):
        read(changed(branch, "model.json", change))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.load_library", "_operator.methodcaller"]
)
def test_operators_of_elsewhere_are_refused_by_name(target, branch):
    def change(said):
        said["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(InputError, match=f"the operator '{target}'.*--trust-pickle"):
        read(changed(branch, "model.json", change))


def test_a_wrong_checksum_is_found(branch):
    broken = bytearray(branch)
    with zipfile.ZipFile(io.BytesIO(branch)) as archive:
        weight = archive.read(next(n for n in archive.namelist() if n.endswith("weight_0")))
    broken[branch.index(weight)] ^= 1
    with pytest.raises(InputError, match="CRC"):
        read(bytes(broken))


@pytest.mark.parametrize(
    "meta",
    [
        {"sizes": [{"as_int": 2**40}, {"as_int": 8}]},
        {"sizes": [{"as_int": 2**40}, {"as_int": 8}], "strides": [{"as_int": 0}, {"as_int": 1}]},
        {"storage_offset": {"as_int": 1}},
        {"strides": [{"as_int": -8}, {"as_int": 1}]},
        {"layout": 1},
    ],
)
def test_tensors_lie_within_their_records(meta, branch):
    def change(said):
        said["config"]["first.weight"]["tensor_meta"].update(meta)

    with pytest.raises(InputError, match="must be a program"):
        read(changed(branch, "model_weights_config.json", change))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids, masks, scale=None):
        x = self.embedding(ids) * masks["kept"][..., None]
        return OrderedDict(logits=self.head(x), pooled=[x.sum(1), x])


def program_of(module, args, kwargs, shapes):
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def test_inputs_and_outputs_may_be_trees():
    open_, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shape = {0: open_, 1: length}
    inputs = {"ids": torch.ones(2, 5).long(), "masks": {"kept": torch.ones(2, 5)}}
    module = Tokens()

    loaded = read(program_of(module, (), inputs, {"ids": shape, "masks": {"kept": shape}}))

    inputs = {"ids": torch.ones(3, 7).long(), "masks": {"kept": torch.zeros(3, 7)}}
    found, expected = loaded(**inputs), module(**inputs)
    assert list(found) == ["logits", "pooled"]
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["pooled"][1], expected["pooled"][1])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_arguments_go_by_name_or_position_however_a_program_was_exported(count):
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    inputs = {"ids": torch.ones(2, 5).long(), "masks": {"kept": torch.ones(2, 5)}}
    args, kwargs = tuple(inputs.values())[:count], dict(list(inputs.items())[count:])
    loaded = read(program_of(Tokens(), args, kwargs, {"ids": shape, "masks": {"kept": shape}}))

    expected = loaded(*args, **kwargs)["logits"]
    for module in (loaded, copy.deepcopy(loaded)):
        assert torch.equal(module(**dict(reversed(inputs.items())))["logits"], expected)
        assert torch.equal(module(*inputs.values())["logits"], expected)
    with pytest.raises(ValueError, match=r"mismatch|exported input tree spec"):
        loaded(inputs["ids"])


def test_copies_keep_the_hooks_of_outputs(branch):
    loaded = read(branch)
    loaded.register_forward_hook(lambda _module, _args, output: {"output": output})
    for copied in (copy.deepcopy(loaded), copy.deepcopy(copy.deepcopy(loaded))):
        assert copied(torch.ones(2, 8)).keys() == {"output"}


@pytest.mark.parametrize("name", ["a b", "x=open('f','w')", "torch", ""])
def test_names_in_trees_are_checked(name):
    shape = {0: torch.export.Dim("batch")}
    inputs = {"ids": torch.ones(2, 5).long(), "masks": {"kept": torch.ones(2, 5)}}
    program = program_of(Tokens(), (), inputs, {"ids": shape, "masks": {"kept": shape}})

    def change(said):
        signature = said["graph_module"]["module_call_graph"][0]["signature"]
        for spec in ("in_spec", "out_spec"):
            old = "kept" if spec == "in_spec" else "pooled"
            tree = signature[spec].replace(f'\\"{old}\\"', json.dumps(json.dumps(name))[1:-1])
            assert tree != signature[spec]
            signature[spec] = tree

    with pytest.raises(InputError, match="must be a list of names"):
        read(changed(program, "model.json", change))


def test_values_of_other_types_in_trees_are_refused():
    shape = {0: torch.export.Dim("batch")}
    inputs = {"ids": torch.ones(2, 5).long(), "masks": {"kept": torch.ones(2, 5)}}
    program = program_of(Tokens(), (), inputs, {"ids": shape, "masks": {"kept": shape}})

    def change(said):
        signature = said["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = signature["out_spec"].replace("builtins.list", "subprocess.Popen")

    with pytest.raises(InputError, match=r"the type subprocess\.Popen"):
        read(changed(program, "model.json", change))


def test_each_input_must_be_a_tensor_of_any_batch_size():
    shape = {0: torch.export.Dim("batch")}
    ids, masks = torch.ones(2, 5).long(), {"kept": torch.ones(2, 5)}
    fixed = program_of(Tokens(), (ids, {"kept": torch.ones(1, 5)}), None, (shape, {"kept": None}))
    with pytest.raises(InputError, match=r"for an input masks_kept of shape \[1, 5\]"):
        read(fixed)
    absent = program_of(Tokens(), (ids, masks, None), None, (shape, {"kept": shape}, None))
    with pytest.raises(InputError, match=r"must take tensors only. It takes None"):
        read(absent)
