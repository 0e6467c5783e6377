"""A model writes its own file, of its own tensors or of others."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mfac_compress.export import open_session, parity_error
from mfac_compress.mfac.batch import Batch
from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs import traced_model
from mfac_compress.pipeline.inputs.model import Model, OnnxForm
from mfac_compress.pipeline.inputs.traced_model import TracedModel
from mfac_compress.pipeline.recipe.schema import ExportSection

NAMES = ["left.weight", "right.weight"]


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a, b):
        return {"product": self.left(a) * self.right(b), "left": self.left(a)}


class Samples:
    """A split of which the same samples come each time."""

    fingerprint = "of samples"

    def __len__(self):
        return 5

    def batches(self, batch_size, *, indices):
        assert len(indices) == batch_size
        inputs = {"a": torch.ones(batch_size, 6, 4), "b": torch.ones(batch_size, 6, 4)}
        yield Batch(inputs, torch.zeros(batch_size))


def form(**section):
    return OnnxForm(ExportSection(**section), Samples(), batch_size=7)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return TracedModel(Towers().eval(), "digest")


def test_the_dense_model_is_exported_once(model, tmp_path, monkeypatch):
    how = form(dynamic_axes={"a": {1: "length"}, "b": {1: "length"}})
    assert model.lost_zeros(NAMES, how) == {}
    monkeypatch.setattr(traced_model, "build_graph", None)

    model.write(None, tmp_path / "m.onnx", how, {"key": "value"})

    assert open_session(tmp_path / "m.onnx").get_inputs()[0].shape == ["batch", "length", 4]
    inputs = {"a": torch.randn(3, 2, 4), "b": torch.randn(3, 2, 4)}
    assert parity_error(model.module, tmp_path / "m.onnx", inputs) < 1e-5
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata == {"key": "value"}


def test_other_tensors_go_into_the_file_and_not_into_the_module(model, tmp_path):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    state = {name: torch.full_like(value, 0.25) for name, value in before.items()}

    model.write(state, tmp_path / "m.onnx", form(), {})

    tensors = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert all((numpy_helper.to_array(tensor) == 0.25).all() for tensor in tensors)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_cannot_be_written_names_the_section(model, tmp_path):
    how = form(dynamic_axes={"c": {1: "length"}})
    for attempt in (
        lambda: model.lost_zeros(NAMES, how),
        lambda: model.write(None, tmp_path / "m.onnx", how, {}),
    ):
        with pytest.raises(InputError, match=r"^export: export.dynamic_axes must .* Got 'c'"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_the_digest_of_a_form_follows_what_is_written():
    plain = form()
    assert plain.digest == form(sparse_kernels="off").digest
    for other in ({"opset": 19}, {"dynamic_axes": {"a": {1: "length"}}}, {"output_name": "y"}):
        assert form(**other).digest != plain.digest
