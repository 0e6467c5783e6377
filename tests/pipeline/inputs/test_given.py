"""Files of masks that are none."""

import os
from types import SimpleNamespace

import pytest
from torch import nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.given import _masks


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "masks")
    source = SimpleNamespace(resolve=lambda written: tmp_path / written)
    recipe = SimpleNamespace(where=lambda key: key, source=source)
    with pytest.raises(InputError, match=r"prune\.masks must be an ordinary file.* is a pipe"):
        _masks(recipe, "masks", nn.Linear(2, 2))
