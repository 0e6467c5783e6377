import numpy as np
import pytest
import torch
from torch import nn

from mfac_compress.export import export_onnx, open_session, predict

INPUTS = np.random.default_rng(0).normal(size=(7, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_outputs_do_not_depend_on_the_batch_size(pruned, batch_size):
    pruned.model.eval()
    expected = pruned.model(torch.from_numpy(INPUTS)).detach().numpy()
    outputs = predict(open_session(pruned.path), INPUTS, batch_size)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_file_with_a_fixed_batch_takes_any_number_of_rows(tmp_path):
    model, inputs = nn.Linear(4, 2), torch.randn(7, 4)
    export_onnx(model, inputs[:3], tmp_path / "m.onnx", dynamic_batch=False)
    outputs = predict(open_session(tmp_path / "m.onnx"), inputs.numpy(), 5)
    np.testing.assert_allclose(outputs, model(inputs).detach().numpy(), atol=1e-5)


def test_inputs_need_not_be_contiguous(pruned):
    session = open_session(pruned.path)
    turned = INPUTS.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(predict(session, turned, 4), predict(session, turned.copy(), 4))


def test_threads_are_set(pruned):
    options = open_session(pruned.path, threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_a_missing_file_is_reported():
    with pytest.raises(ValueError, match="Found none"):
        open_session("nowhere.onnx")


def test_a_truncated_file_is_reported(pruned, tmp_path, capfd):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(pruned.path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"must be able to load .*broken\.onnx"):
        open_session(broken)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "inputs", [INPUTS.astype(np.float64), INPUTS[:, :2], INPUTS[0]], ids=["dtype", "shape", "rank"]
)
def test_inputs_that_do_not_fit_are_reported(pruned, inputs):
    with pytest.raises(ValueError, match=r"tensor\(float\) of shape \['batch', 3, 4, 4\]"):
        predict(open_session(pruned.path), inputs, 4)


def test_no_inputs_are_refused(pruned):
    with pytest.raises(ValueError, match="at least one row"):
        predict(open_session(pruned.path), INPUTS[:0], 4)
