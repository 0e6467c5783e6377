"""Each test begins as a new process does: no user's code has been loaded or opened yet."""

import sys

import pytest

from mfac_compress.pipeline.inputs.code_sources import forget_opened


@pytest.fixture(autouse=True)
def _nothing_loaded_by_other_tests(tmp_path_factory, monkeypatch):
    # What earlier tests wrote, imported and wrote anew is code that changed in this process, and
    # no artefact that was made with such is ever reused.
    forget_opened()
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(written):
            monkeypatch.delitem(sys.modules, name)
