"""The files that the user's code is made of."""

import importlib.util
import os
import py_compile
import sys

import pytest

from mfac_compress.pipeline.inputs.callables import resolve_callable, user_code
from mfac_compress.pipeline.inputs.code_sources import (
    CHANGED,
    CodeSources,
    forget_opened,
    present_sources,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Code in three files, of which the recipe names the first."""
    (tmp_path / "own_first.py").write_text(
        "import own_second\ndef act(): return own_second.act()\n"
    )
    (tmp_path / "own_second.py").write_text(
        "def act():\n    import own_third\n    return own_third.VALUE\n"
    )
    (tmp_path / "own_third.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget_opened()
    yield tmp_path
    for name in ("own_first", "own_second", "own_third"):
        sys.modules.pop(name, None)


def _of(project, sources):
    return {path.rpartition("/")[2] for path in sources if path.startswith(str(project))}


@pytest.mark.parametrize("spec", ["own_first:act", "own_first.py:act"])
def test_imports_count_as_they_are_made(project, spec):
    act = resolve_callable(spec, key="task.metric", folder=project)
    before = present_sources()
    assert _of(project, before.files) == {"own_first.py", "own_second.py"}
    assert not before.since()

    act()

    assert _of(project, before.since()) == {"own_third.py"}


def test_the_digest_follows_every_file(project):
    resolve_callable("own_first.py:act", key="task.metric", folder=project)
    before = present_sources()
    sys.modules.pop("own_second")
    (project / "own_second.py").write_text("def act(): return 2\n")
    resolve_callable("own_second:act", key="task.metric", folder=project)
    assert present_sources().digest != before.digest


def test_files_that_are_read_count_and_those_that_are_written_do_not(project):
    with user_code():
        (project / "config.json").write_text("{}")
        with open(project / "config.json") as file:
            file.read()
        with open(project / "log.txt", "a") as file:
            file.write("x")
    assert _of(project, present_sources().files) == {"config.json"}


def test_code_that_is_read_compiled_counts_by_its_source(project):
    """Python reads either, and a module that is executed by hand is in no list of modules."""
    path = project / "own_third.py"
    py_compile.compile(str(path))
    with user_code():
        spec = importlib.util.spec_from_file_location("by_hand", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert _of(project, present_sources().files) == {"own_third.py"}


def test_code_that_is_there_compiled_alone_counts(project):
    source = project / "own_third.py"
    py_compile.compile(str(source), cfile=str(project / "own_third.pyc"))
    source.unlink()
    resolve_callable("own_first:act", key="task.metric", folder=project)()
    assert "own_third.pyc" in _of(project, present_sources().files)


def test_samples_do_not_count(project):
    with user_code(reads_data=True), open(project / "own_third.py") as file:
        file.read()
    assert not _of(project, present_sources().files)


def test_packages_that_a_recipe_names_count_and_no_others():
    assert not any("site-packages" in path for path in present_sources().files)
    named = present_sources({"click.core"}).files
    assert any(path.endswith("click/core.py") for path in named)
    assert not any("/torch/" in path for path in present_sources({"torch.nn"}).files)


def test_no_code_has_a_digest_too():
    assert CodeSources().digest == CodeSources().digest != CodeSources({"a": "b"}).digest


def test_the_script_that_starts_a_run_does_not_count_by_either_of_its_names(project, monkeypatch):
    script = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("__main__", project / "own_first.py")
    )
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setitem(sys.modules, "__mp_main__", script)  # as multiprocessing does
    assert not _of(project, present_sources().files)


def _edit(path, text="VALUE = 2\n"):
    path.write_text(text)
    os.utime(path, ns=(1, 1))  # whatever the clock says, not the time of a write before


@pytest.mark.parametrize("spec", ["own_first:act", "own_first.py:act"])
def test_a_module_that_is_edited_after_the_stock_is_noticed(project, spec):
    act = resolve_callable(spec, key="task.metric", folder=project)
    before = present_sources()
    with user_code():
        act()
    _edit(project / "own_first.py")
    _edit(project / "own_third.py")
    changed = {path for path, digest in before.since().items() if digest == CHANGED}
    assert _of(project, changed) == {"own_first.py", "own_third.py"}


def test_a_file_that_is_edited_after_it_was_opened_is_noticed(project):
    """Also where its content comes back: what was read in between, nobody knows."""
    path = project / "own_third.py"
    written = path.read_text()
    with user_code(), open(path) as file:
        file.read()
    before = present_sources()
    assert not before.since()
    for text in ("VALUE = 2\n", written):
        _edit(path, text)
        assert before.since() == {str(path): CHANGED}
    path.unlink()
    assert before.since() == {str(path): CHANGED}


def test_a_file_that_is_edited_before_the_stock_is_not_reusable(project):
    resolve_callable("own_first.py:act", key="task.metric", folder=project)
    _edit(project / "own_first.py")
    assert present_sources().unseen == (str(project / "own_first.py"),)


def test_a_later_stock_keeps_what_was_there_before(project):
    act = resolve_callable("own_first.py:act", key="task.metric", folder=project)
    before = present_sources()
    act()
    _edit(project / "own_first.py")

    later = before.with_later()

    own = str(project / "own_first.py")
    assert later.files[own] == before.files[own]
    assert _of(project, later.files) == {"own_first.py", "own_second.py", "own_third.py"}
    assert later.since() == {own: CHANGED}
    assert own in later.unseen
