"""Properties of finding the functions that a recipe names."""

import pickle
import sys

import pytest
import torch

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.inputs.callables import check_takes, resolve_callable
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.recipe.schema import ModelSection

KEY = "model.factory"


@pytest.fixture
def net(tmp_path):
    file = tmp_path / "models" / "net.py"
    file.parent.mkdir()
    file.write_text(
        "class Net:\n"
        "    @classmethod\n"
        "    def small(cls):\n"
        "        return cls()\n"
        "def build_net():\n"
        "    return 7\n"
        "size = 3\n"
    )
    return file


def resolve(spec, folder):
    return resolve_callable(spec, key=KEY, folder=folder)


def test_a_relative_file_starts_at_the_recipes_folder(net, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert resolve("models/net.py:build_net", tmp_path)() == 7


def test_an_absolute_file_and_a_dotted_callable_are_found(net, tmp_path):
    assert type(resolve(f"{net}:Net.small", tmp_path / "elsewhere")()).__name__ == "Net"


def test_an_installed_module_is_found(tmp_path):
    assert resolve("math:sqrt", tmp_path)(9) == 3


def test_what_a_file_defines_can_be_pickled(net, tmp_path):
    made = resolve("models/net.py:Net", tmp_path)()
    assert type(pickle.loads(pickle.dumps(made))) is type(made)


def test_the_search_path_stays_as_it_was(net, tmp_path):
    before = list(sys.path)
    resolve("models/net.py:Net", tmp_path)
    assert sys.path == before


def test_an_edited_file_is_loaded_anew_and_an_unchanged_one_is_not(net, tmp_path):
    first = resolve("models/net.py:build_net", tmp_path)
    assert resolve("models/net.py:build_net", tmp_path) is first
    net.write_text("def build_net():\n    return 8\n")
    assert resolve("models/net.py:build_net", tmp_path)() == 8


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("models/net.py", ["package.module:callable", "'models/net.py'"]),
        ("models/net.py:", ["package.module:callable"]),
        ("models/net.txt:build_net", [".py"]),
        ("models/nett.py:build_net", ["exists", "nett.py", "recipe's folder"]),
        ("models/net.py:buildnet", ["no 'buildnet'", "Did you mean build_net"]),
        ("models/net.py:size", ["function or a class", "an int"]),
        ("no_such_package.thing:build", ["no module 'no_such_package'", "PYTHONPATH"]),
        ("math.no_such:build", ["no module 'math.no_such'"]),
        ("math:sqroot", ["no 'sqroot'", "sqrt"]),
    ],
)
def test_a_wrong_name_is_refused_with_the_key_and_advice(spec, parts, net, tmp_path):
    with pytest.raises(InputError) as caught:
        resolve(spec, tmp_path)
    for part in [KEY, *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("x = 1\nraise RuntimeError('no luck')\n", ["RuntimeError: no luck", "line 2"]),
        ("x = 1\n\ndef broken(:\n", ["SyntaxError", "line 3"]),
        ("import no_such_library\n", ["no_such_library", "line 1", "Install"]),
        ("from .blocks import B\n", ["package.module:callable"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit", "line 2", "__main__"]),
    ],
)
def test_a_file_that_fails_on_import_is_refused_with_its_line(source, parts, net, tmp_path):
    net.write_text(source)
    with pytest.raises(InputError) as caught:
        resolve("models/net.py:build_net", tmp_path)
    for part in [KEY, "net.py", *parts]:
        assert part in str(caught.value)


def test_only_what_can_be_called_is_suggested(net, tmp_path):
    with pytest.raises(InputError) as error:
        resolve("models/net.py:sizes", tmp_path)
    assert "size" not in str(error.value).partition("no 'sizes'")[2]


def test_a_fault_is_placed_in_the_users_lines_or_nowhere(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\ndef wide(): return torch.ones(2) + torch.ones(3)\n"
        "def deep(): return torch.nn.functional.linear(torch.ones(2), torch.ones(3, 3))\n"
    )
    for name, place in [("wide", " (own.py, line 2)"), ("deep", " (own.py, line 3)")]:
        with pytest.raises(RuntimeError) as error:
            resolve(f"own.py:{name}", tmp_path)()
        assert describe(error.value).endswith(place)


def test_an_error_of_several_arguments_is_described_whole(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "missing.txt").read_text()
    assert "No such file or directory" in describe(error.value)
    assert "missing.txt" in describe(error.value)


def test_a_call_that_does_not_fit_names_no_line_of_ours(net, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    section = ModelSection(factory="models/net.py:build_net", kwargs={"width": 3})
    with pytest.raises(InputError, match=r"unexpected keyword argument 'width'\.$"):
        load_model(tmp_path / "w.pt", section, folder=tmp_path)


class Incomparable:
    """A callable that is compared with nothing, as some are of which a comparison is made."""

    def __call__(self, outputs, targets):
        return 0.0

    def __eq__(self, other):
        raise RuntimeError("compare by name")

    __hash__ = object.__hash__


def test_what_tells_nothing_of_its_arguments_is_taken_as_it_is():
    for function in (Incomparable(), max):
        check_takes(function, ("outputs", "targets"), key=KEY, name="own.py:metric")
