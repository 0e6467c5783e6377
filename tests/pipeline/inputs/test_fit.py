"""A file's tensors become the model's under its names and in its kinds of numbers, or are named."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.fit import fit

PATH = Path("model.pt")


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def fitted(state, *, net=None, prefix=None):
    net = net or build(1)
    return net, fit(net, state, PATH, "net.py:net", prefix)


def refusal(state, **options):
    with pytest.raises(InputError) as caught:
        fitted(state, **options)
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def same(net, state):
    return all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module.", "a.b.c."])
def test_a_prefix_that_all_names_have_is_found(prefix):
    state = build().state_dict()
    net, result = fitted(prefixed(state, prefix))
    assert same(net, state)
    assert result.prefix == prefix


def test_a_prefix_that_only_the_model_has_is_put_before_the_names():
    state = build().state_dict()
    net, result = fitted(state, net=nn.ModuleDict({"backbone": build(1)}))
    assert same(net["backbone"], state)
    assert result.prefix == "+backbone."


class Versioned(nn.Linear):
    """Takes no tensors without their version, as torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2. Got {local_metadata}")
        self.loaded_version = local_metadata["version"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def versioned_net():
    return nn.Sequential(Versioned(8, 4), nn.BatchNorm1d(4))


def named_otherwise(state, change):
    renamed = OrderedDict((change(name), value) for name, value in state.items())
    renamed._metadata = OrderedDict((change(path), own) for path, own in state._metadata.items())
    return renamed


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("prefix", ["", "module.", "net.module."])
def test_versions_of_modules_are_those_of_the_file(version, prefix):
    state = versioned_net().state_dict()
    state._metadata["0"]["version"] = version
    renamed = named_otherwise(state, lambda name: (prefix + name).removesuffix("."))
    net, _ = fitted(renamed, net=versioned_net())
    assert net[0].loaded_version == version


def test_versions_follow_a_prefix_that_only_the_model_has():
    state = versioned_net()[0].state_dict()
    state._metadata[""]["version"] = 1
    net, _ = fitted(state, net=versioned_net()[:1])
    assert net[0].loaded_version == 1


def test_versions_outside_of_the_prefix_are_left_out():
    state = versioned_net().state_dict()
    file = named_otherwise(state, lambda name: f"net.{name}".removesuffix("."))
    file |= {"0.weight": torch.ones(1)}
    file._metadata["0"] = {"version": 3}
    net, _ = fitted(file, net=versioned_net(), prefix="net.")
    assert net[0].loaded_version == 2


def test_nothing_but_versions_of_modules_is_taken_from_a_file():
    state = build().state_dict()
    for own in state._metadata.values():
        own["assign_to_params_buffers"] = True  # PyTorch would put its tensors in the place of ours
    net = build()
    weight = net[0].weight
    fitted(state, net=net)
    assert net[0].weight is weight


def test_files_without_versions_are_taken_for_those_of_today():
    state = dict(versioned_net().state_dict())
    del state["1.num_batches_tracked"]  # but for a module that lacks something
    net, _ = fitted(state, net=versioned_net())
    assert net[0].loaded_version == 2
    assert same(net, state)


def test_what_averaged_models_count_is_left_out():
    state = build().state_dict()
    averaged = {"n_averaged": torch.tensor(7), **prefixed(state, "module.")}
    assert same(fitted(averaged)[0], state)


def test_a_prefix_of_some_names_is_advised_and_taken_where_the_recipe_says_so():
    state = build().state_dict()
    file = prefixed(state, "model.") | {"loss.weight": torch.ones(3)}
    message = refusal(file)
    assert "model.prefix to 'model.'" in message
    assert same(fitted(file, prefix="model.")[0], state)
    assert "model.prefix must be what names" in refusal(file, prefix="nodel.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_are_converted_and_counted(dtype):
    state = build().state_dict()
    narrow = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    net, result = fitted(narrow)
    assert result.converted == 8
    assert torch.equal(net[0].weight, narrow["0.weight"].float())


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn]
)
def test_other_kinds_of_numbers_are_named(dtype):
    state = build().state_dict()
    state["0.weight"] = state["0.weight"].to(dtype)
    message = refusal(state)
    assert f"0.weight (file {str(dtype)[6:]}, model float32)" in message
    assert "0.bias" not in message


def test_integers_may_change_their_width_where_they_keep_their_values():
    state = build().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    assert fitted(state)[0][1].num_batches_tracked == 7
    state["1.num_batches_tracked"] = torch.tensor(7.0)
    assert "num_batches_tracked (file float32, model int64)" in refusal(state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda t: t.to_sparse(), "sparse_coo"),
        (lambda t: t.to_sparse_csr(), "sparse_csr"),
        (lambda t: t.to("meta"), "without values"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: torch.nested.nested_tensor([t]), "nested"),
    ],
)
def test_tensors_that_are_not_plain_are_named(convert, kind):
    state = build().state_dict()
    state["0.weight"] = convert(state["0.weight"])
    assert f"0.weight ({kind})" in refusal(state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("gone", ["embedding.weight", "head.weight"])
def test_a_tensor_that_is_there_under_another_name_is_not_missing(gone):
    state = Tied().state_dict()
    del state[gone]
    net = fitted(state, net=Tied())[0]
    assert all(
        torch.equal(value, next(iter(state.values()))) for value in net.state_dict().values()
    )


def test_tied_names_with_different_values_are_refused():
    state = {"embedding.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    assert "tied in the model, but not the same" in refusal(state, net=Tied())


def test_lazy_layers_take_the_shapes_of_the_file():
    state = nn.Sequential(nn.Linear(8, 4)).state_dict()
    net, _ = fitted(state, net=nn.Sequential(nn.LazyLinear(4)))
    assert same(net, state)


class Leaving(nn.Linear):
    def _load_from_state_dict(self, *arguments):
        raise SystemExit(0)


def test_a_hook_of_the_model_cannot_end_the_run():
    assert "SystemExit" in refusal(nn.Linear(3, 2).state_dict(), net=Leaving(3, 2))
