"""What others wrote is shown on one line, and not too long."""

import pytest

from mfac_compress.pipeline.quoting import shown


@pytest.mark.parametrize("name", ["x\n\x1b[31m", "\udcff", "é" * 5000, ""])
def test_any_name_is_shown_on_one_short_line(name):
    assert shown(name).isprintable()
    assert len(shown(name)) < 2000
    shown(name).encode()
