"""Hostile ONNX files end in an answer; `onnx_files.py` beside this makes more of them."""

import pytest

from mfac_compress.export import kernel_library


@pytest.fixture(autouse=True)
def _kernels():
    try:
        kernel_library()
    except ValueError:
        pytest.skip("the sparse kernels are not built: there was no C++ compiler")


def test_a_part_of_the_kinds_and_of_the_damage(attack):
    attack("onnx_files.py", "--count", "360", "--step", "20")


@pytest.mark.long
def test_all_kinds_and_damage_at_random(attack):
    attack("onnx_files.py", "--count", "900", "--seed", "1")
