"""Properties of loading a model: what fits is loaded exactly, what does not is named."""

import contextlib
import os
import sys
import zipfile
from collections import OrderedDict

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.model_file import load_model, set_training
from mfac_compress.pipeline.recipe.schema import ModelSection

FACTORY = "net.py:net"
SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(),
                         nn.Linear(width * 36, 3))

def net(width=4):
    return Net(width)

def fails():
    raise RuntimeError("no weights here")

def number():
    return 7

def indices():
    net = Net()
    net.index = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return net

def double():
    return Net().double()

def all_frozen():
    return Net().requires_grad_(False)

def frozen():
    net = Net()
    net[0].weight.requires_grad_(False)
    return net

def empty():
    return nn.ReLU()
"""


def build(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 3)
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture
def state():
    torch.manual_seed(0)
    return build().state_dict()


def load(path, folder, *, factory=FACTORY, trust_pickle=False, **kwargs):
    section = ModelSection(factory=factory, kwargs=kwargs)
    return load_model(path, section, folder=folder, trust_pickle=trust_pickle)


def refusal(path, folder, **options):
    with pytest.raises(InputError) as caught:
        load(path, folder, **options)
    return str(caught.value)


def saved(content, folder, name="model.pt", **options):
    path = folder / name
    if name.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path, **options)
    return path


def same(module, state):
    loaded = module.state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.safetensors"])
def test_a_state_dict_is_loaded_exactly(name, folder, state):
    module = load(saved(state, folder, name), folder).module
    assert same(module, state)
    assert not module.training
    assert all(p.requires_grad for p in module.parameters())


def test_the_old_file_format_is_loaded_too(folder, state):
    path = saved(state, folder, _use_new_zipfile_serialization=False)
    assert same(load(path, folder).module, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s, "model_ema": {}},
        lambda s: {"model_state_dict": s},
        lambda s: {"net": s, "acc": 91.7},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(wrap, folder, state):
    assert same(load(saved(wrap(state), folder), folder).module, state)


def test_a_file_without_batchnorm_counters_is_complete(folder, state):
    del state["1.num_batches_tracked"]
    load(saved(state, folder, "old.safetensors"), folder)


def test_frozen_parameters_stay_frozen(folder, state):
    module = load(saved(state, folder), folder, factory="net.py:frozen").module
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["0.weight"]


def test_a_model_without_trainable_parameters_is_refused(folder, state):
    message = refusal(saved(state, folder), folder, factory="net.py:all_frozen")
    assert "All 6 are frozen" in message


def test_all_misfits_are_listed_at_once_with_the_factory(folder, state):
    del state["3.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["3.weight"] = torch.zeros(3, 5)
    message = refusal(saved(state, folder), folder)
    assert "1 missing in the file: 3.bias" in message
    assert "1 unknown to the model: extra.weight" in message
    assert "1 of another shape: 3.weight (file [3, 5], model [3, 144])" in message
    assert FACTORY in message


def test_a_long_list_is_cut_with_a_count(folder, state):
    state |= {f"extra{i}": torch.zeros(1) for i in range(30)}
    message = refusal(saved(state, folder), folder)
    assert "30 unknown" in message
    assert "and 20 more" in message
    assert "extra29" not in message


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickled_module_is_refused_with_the_ways_out(options, folder):
    message = refusal(saved(build(), folder, **options), folder)
    for part in (
        "arbitrary unpickling",
        "torch.nn.modules",
        "model.state_dict()",
        "safetensors",
        "torch.export.save",
        "--trust-pickle",
    ):
        assert part in message


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_no_code_unless_it_is_trusted(folder, state):
    mark = folder / "it_ran"
    path = saved({"state_dict": state, "args": Bomb(mark)}, folder, pickle_protocol=2)
    refusal(path, folder)
    assert not mark.exists()


class Named:
    """A state dict that is given attributes when it is read."""

    def __init__(self, state, attributes):
        self.state, self.attributes = state, attributes

    def __reduce__(self):
        return OrderedDict, (), self.attributes, None, iter(self.state.items())


@pytest.mark.parametrize("name", ["items", "keys", "values", "get"])
def test_attributes_in_a_pickle_hide_no_method(name, folder, state):
    hidden, tensor = {name: 5}, state["0.weight"].half()
    tensor.to = 5  # as if by an attacker
    weights = state | {"0.weight": tensor}
    path = saved({"model": Named(weights, hidden | {"_metadata": Named({}, hidden)})}, folder)
    assert same(load(path, folder).module, state | {"0.weight": tensor.float()})


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_trusted_module_is_taken_whole(wrap, folder):
    module = build()
    loaded = load(saved(wrap(module), folder), folder, factory=None, trust_pickle=True).module
    assert same(loaded, module.state_dict())


def test_a_trusted_state_dict_is_read_too(folder, state):
    assert same(load(saved(state, folder), folder, trust_pickle=True).module, state)


def test_a_factory_beside_a_whole_module_is_refused(folder):
    message = refusal(saved(build(), folder), folder, trust_pickle=True)
    assert "model.factory must be left out" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named_and_refused(folder):
    path = folder / "model.pt"
    torch.jit.trace(build().eval(), torch.zeros(1, 1, 8, 8)).save(path)
    assert "TorchScript" in refusal(path, folder)
    assert "TorchScript" in refusal(path, folder, trust_pickle=True)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "old.pt", "program.pt2"])
@pytest.mark.parametrize("kept", [0.1, 0.6, 0.99])
def test_a_truncated_file_is_refused(name, kept, folder, state):
    if name == "program.pt2":
        path = exported(folder)
    else:
        old = {"_use_new_zipfile_serialization": False} if name == "old.pt" else {}
        path = saved(state, folder, name, **old)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(path, folder)
    assert str(path) in message
    assert "cut off" in message
    assert "weights_only" not in message


def test_missing_empty_and_foreign_files_are_refused(folder):
    assert "exists" in refusal(folder / "none.pt", folder)
    assert "folder" in refusal(folder, folder)
    for name in ("model.pt", "model.safetensors", "model.pt2"):
        path = folder / name
        path.write_bytes(b"")
        assert "empty" in refusal(path, folder)
        path.write_bytes(b"these are no weights")
        assert "cannot be read" in refusal(path, folder)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"generator": {"w": torch.zeros(1)}, "critic": {}}, "generator, critic"),
        ({"model": {"w": torch.zeros(1)}, "net": {"w": torch.zeros(1)}}, "model, net"),
        ({"epoch": 3}, "epoch"),
        ({}, "nothing"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(3), "Tensor"),
    ],
)
def test_a_file_without_one_state_dict_is_refused(content, part, folder):
    message = refusal(saved(content, folder), folder)
    assert "state_dict" in message
    assert part in message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"factory": None}, "model.factory must be given"),
        ({"factory": "net.py:fails"}, "RuntimeError: no weights here (net.py, line"),
        ({"factory": "net.py:number"}, "returned a int"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
        ({"factory": "net.py:double"}, "float32"),
        ({"factory": "gone.py:net"}, "gone.py"),
    ],
)
def test_a_wrong_factory_is_refused(options, part, folder, state):
    message = refusal(saved(state, folder), folder, **options)
    assert part in message


def test_the_wrong_width_is_refused_by_its_shapes(folder, state):
    assert "of another shape" in refusal(saved(state, folder), folder, width=8)


def test_non_finite_weights_are_named(folder, state):
    state["3.bias"][1] = float("nan")
    state["1.running_var"][0] = float("inf")
    message = refusal(saved(state, folder), folder)
    assert "3.bias" in message
    assert "1.running_var" in message
    assert "0.weight" not in message


def test_the_digest_follows_tensors_that_no_file_holds(folder, state, monkeypatch):
    (folder / "net.py").write_text(
        SOURCE
        + """
import os

def net(width=4):
    net = Net(width)
    for name, value in (("scale", float(os.environ["SCALE"])), ("turn", 1j)):
        net.register_buffer(name, torch.tensor(value), persistent=False)
    return net
"""
    )
    path = saved(state, folder)
    monkeypatch.setenv("SCALE", "1")
    first = load(path, folder).digest
    assert load(path, folder).digest == first
    monkeypatch.setenv("SCALE", "2")
    assert load(path, folder).digest != first


@pytest.mark.parametrize("made", ["torch.eye(2).to_sparse()", "torch.empty(2, device='meta')"])
def test_tensors_that_are_not_plain_are_named(folder, state, made):
    (folder / "net.py").write_text(
        SOURCE
        + f"""
def net(width=4):
    net = Net(width)
    net.register_buffer("edges", {made}, persistent=False)
    return net
"""
    )
    with pytest.raises(InputError, match=r"plain dense tensors.*edges"):
        load(saved(state, folder), folder)


def test_the_digest_follows_file_and_arguments(folder, state):
    path = saved(state, folder, "model.safetensors")
    first = load(path, folder).digest
    assert load(path, folder).digest == first
    assert load(path, folder, width=4).digest != first
    state["3.bias"] += 1
    assert load(saved(state, folder, "model.safetensors"), folder).digest != first


def exported(folder, *, model=None, batch=True, training=False, name="program.pt2"):
    model = (model or build()).train(training)
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    program = torch.export.export(model, (torch.randn(2, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "program.pt2")
    return (folder / "program.pt2").rename(folder / name)


@pytest.mark.parametrize("name", ["program.pt2", "program.pt"])
def test_an_exported_program_needs_no_factory_and_computes_the_same(name, folder):
    torch.manual_seed(1)
    model = build().eval()
    module = load(exported(folder, model=model, name=name), folder, factory=None).module
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(module(x), model(x), atol=1e-6)
    assert all(p.requires_grad for p in module.parameters())
    module(x).sum().backward()
    assert module.get_parameter("0.weight").grad.abs().sum() > 0


def test_set_training_switches_modules_and_leaves_programs(folder):
    plain = build()
    set_training(plain, False)
    assert not plain[1].training
    set_training(plain, True)
    assert plain[1].training
    program = load(exported(folder), folder, factory=None).module
    x = torch.randn(4, 1, 8, 8)
    before = program(x)
    set_training(program, True)
    assert torch.equal(program(x), before)


def test_programs_that_cannot_be_calibrated_are_refused(folder):
    assert "model.factory must be left out" in refusal(exported(folder), folder)
    fixed = refusal(exported(folder, batch=False), folder, factory=None)
    assert "any batch size" in fixed
    assert "[2, 1, 8, 8]" in fixed
    training = refusal(exported(folder, training=True), folder, factory=None)
    assert "evaluation mode" in training
    assert "batch_norm" in training


class WithConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x):
        return self.linear(x) * torch.tensor([1.0, 2.0])


def test_a_program_with_a_constant_tensor_is_no_pickle(folder):
    module = load(exported(folder, model=WithConstant()), folder, factory=None).module
    assert module(torch.zeros(3, 1, 8, 8)).shape == (3, 1, 8, 2)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda name, data: (name, data.replace(b'"use_pickle": false', b'"use_pickle": true')),
        lambda name, data: (name, data.replace(b'"weight_0"', b'"opaque_obj_0"')),
    ],
)
def test_a_program_that_would_unpickle_is_refused(tamper, folder):
    path = exported(folder)
    rewrite(path, tamper)
    message = refusal(path, folder, factory=None)
    assert "arbitrary unpickling" in message
    assert "--trust-pickle" in message


def test_pickled_sample_inputs_are_not_read(folder):
    mark = folder / "it_ran"
    bomb = saved((Bomb(mark),), folder, "bomb.pt", pickle_protocol=2).read_bytes()
    path = exported(folder)
    rewrite(path, lambda name, data: (name, bomb if "sample_inputs" in name else data))
    load(path, folder, factory=None)
    assert not mark.exists()


def test_compiled_libraries_in_a_program_are_refused(folder):
    path = exported(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("program/data/aotinductor/model/code.so", b"\x7fELF")
    assert "native code" in refusal(path, folder, factory=None)


def rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        records = [change(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)


def test_what_else_is_no_ordinary_file_is_refused(folder):
    os.mkfifo(folder / "pipe.pt")
    (folder / "loop.pt").symlink_to("loop.pt")
    for name in ("pipe.pt", "/dev/zero"):
        assert "ordinary file" in refusal(folder / name, folder)
    for name in ("loop.pt", "n" * 300 + ".pt", "a\0b.pt"):
        assert "can be read" in refusal(folder / name, folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt"])
def test_an_onnx_file_is_read_as_one_whatever_its_name(name, folder):
    tensor = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [tensor], [])
    onnx.save(onnx.helper.make_model(graph), folder / name)
    message = refusal(folder / name, folder)
    assert "model.factory must be left out" in message
    assert "brings its own model" in message


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_files_of_other_kinds_are_said_to_be_what_they_are(start, part, folder):
    (folder / "model.pt").write_bytes(start + bytes(100))
    assert part in refusal(folder / "model.pt", folder)


def test_an_integer_parameter_is_to_be_a_buffer(folder, state):
    state["index"] = torch.zeros(3, dtype=torch.int64)
    message = refusal(saved(state, folder), folder, factory="net.py:indices")
    assert "index (torch.int64)" in message
    assert "register it as a buffer" in message


def test_the_chosen_weights_and_what_was_done_to_them_are_reported(folder, state):
    half = {f"net.{n}": v.half() if v.is_floating_point() else v for n, v in state.items()}
    path = saved({"model": state, "ema": {"module": half}}, folder)
    assert "model.weights" in refusal(path, folder)
    section = ModelSection(factory=FACTORY, weights="ema.module")
    loaded = load_model(path, section, folder=folder)
    assert loaded.origin == {"model_weights": "ema.module", "model_prefix": "net."}
    other = load_model(path, ModelSection(factory=FACTORY, weights="model"), folder=folder)
    assert other.origin == {"model_weights": "model", "model_prefix": ""}
    assert loaded.digest != other.digest


def test_a_safetensors_file_has_no_keys_to_choose_from(folder, state):
    path = saved(state, folder, "model.safetensors")
    with pytest.raises(InputError, match=r"model\.weights must be left out"):
        load_model(path, ModelSection(factory=FACTORY, weights="ema"), folder=folder)


def test_classes_that_are_not_found_are_named(folder):
    source = "from torch import nn\nclass Gone(nn.Linear):\n    pass\n"
    (folder / "gone_classes.py").write_text(source)
    sys.path.insert(0, str(folder))
    try:
        import gone_classes

        path = saved(gone_classes.Gone(3, 2), folder)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("gone_classes", None)
    message = refusal(path, folder, factory=None, trust_pickle=True)
    assert "gone_classes" in message
    assert "PYTHONPATH" in message


@pytest.mark.parametrize("name", ["model.pt", "program.pt2"])
def test_damaged_files_write_nothing_to_the_terminal(name, folder, state, capfd):
    path = saved(state, folder) if name == "model.pt" else exported(folder)
    content = bytearray(path.read_bytes())
    capfd.readouterr()
    for at in range(100, len(content), max(len(content) // 40, 1)):
        path.write_bytes(content[:at] + b"\xff\x00" + content[at + 2 :])
        with contextlib.suppress(InputError):
            load(path, folder, factory=FACTORY if name == "model.pt" else None)
    assert capfd.readouterr() == ("", "")


def test_names_cannot_write_to_the_terminal(folder, state):
    state["\x1b[31m\u202e"] = torch.zeros(1)
    message = refusal(saved(state, folder), folder)
    assert message.isprintable()
    assert "\\x1b[31m" in message
