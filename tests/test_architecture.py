"""The house rules that code can check."""

import ast
import configparser
import importlib
import pkgutil
from doctest import DocTestFinder, DocTestRunner
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("mfac", "export", "pipeline", "recipes")
MAY_IMPORT = {
    "mfac": {"mfac"},
    "export": {"export"},
    "pipeline": {"pipeline", "mfac", "export", "recipes"},
    "recipes": {"recipes"},
}
TREES = "mfac_compress.mfac.batch"
"""What flows through all of them."""
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# Each file or folder of pipeline/ may import from its own line and from those above it.
ROOMS = (
    ("errors", "quoting", "digest", "files", "file_names", "terminal", "signals"),
    ("standard_streams", "supervise", "weights", "statistics"),
    ("progress", "ranks", "cli_types", "cli_exits"),
    ("recipe", "versions"),
    ("inputs",),
    ("run",),
    ("stages",),
    ("verdict",),
    ("schedule", "outcome", "dry_run", "starter"),
    ("compression", "speed"),
    ("cli_commands",),
    ("cli",),
    ("start", "__main__", "__init__"),
)
LINES = {room: line for line, rooms in enumerate(ROOMS) for room in rooms}
MODULES = {
    ".".join(("mfac_compress", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in FILES
}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            of_package = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in of_package)


def _imports_within(folder):
    """The modules of a folder, and those of it that each imports, be it in a function."""
    inside = {name for name in MODULES if name.startswith(f"mfac_compress.{folder}")}
    return {name: inside & {*_imports(MODULES[name])} - {name} for name in sorted(inside)}


def _room(name):
    return (*name.split("."), "__init__")[2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_one_direction(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "mfac_compress":
            assert parts[1] in MAY_IMPORT[folder] or name == TREES
        assert parts[0] not in FOLDERS, "the folders are importable only below mfac_compress"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_modules_import_each_other_in_a_circle(folder):
    try:
        TopologicalSorter(_imports_within(folder)).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_room_of_the_pipeline_has_its_line():
    assert {_room(name) for name in _imports_within("pipeline")} <= set(LINES)


def test_imports_within_the_pipeline_go_down():
    upward = [
        f"{name} imports {other}"
        for name, others in _imports_within("pipeline").items()
        for other in others - {"mfac_compress.pipeline"}
        if LINES[_room(other)] > LINES[_room(name)]
    ]
    assert not upward, "\n".join(upward)


def test_mfac_knows_no_onnx_yaml_or_command_line():
    foreign = {"onnx", "onnxruntime", "yaml", "pydantic", "click", "rich"}
    for path in (ROOT / "mfac").rglob("*.py"):
        assert not {name.split(".")[0] for name in _imports(path)} & foreign, path


def test_every_package_on_disk_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    on_disk = {
        ".".join(("mfac_compress", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == on_disk


def _modules():
    for folder in FOLDERS:
        package = importlib.import_module(f"mfac_compress.{folder}")
        yield package.__name__
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.endswith("__main__"):
                yield info.name


@pytest.mark.parametrize("name", sorted(set(_modules())))
def test_examples_in_docstrings_hold(name):
    runner = DocTestRunner()
    for test in DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        runner.run(test)
    assert runner.failures == 0
