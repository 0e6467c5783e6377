"""Files of a recipe: found wherever they lead, and refused where they are no files."""

import os

import pytest

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.files import check_regular, resolved


def test_a_circle_of_links_is_a_path_at_which_there_is_nothing(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert not os.path.exists(resolved("a", tmp_path))


def test_what_is_no_ordinary_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("link", "a device"), (".", "a folder")):
        with pytest.raises(InputError, match=f"data.x must be an ordinary file.*{kind}"):
            check_regular(tmp_path / name, "data.x")
    (tmp_path / "file").write_bytes(b"abc")
    assert check_regular(tmp_path / "file", "data.x") == 3
