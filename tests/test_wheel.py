"""The wheel holds everything, makes nothing else importable, and runs end to end.

The kernels take long to compile, and were compiled when the package was installed: that library
goes into the wheel in the place of one that is built anew, except in the long form.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mfac_compress.export import kernel_library

ROOT = Path(__file__).parent.parent
# Takes the place of the compiler: compiles nothing, and links what was linked before.
STAND_IN = """#!/bin/sh
for argument; do
    case $argument in -c) compiles=yes ;; esac
    case $before in -o) output=$argument ;; esac
    before=$argument
done
if [ "$compiles" ]; then : > "$output"; else cp '{library}' "$output"; fi
"""


def _run(*command, **options):
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _stand_in(folder):
    """What to compile with, for the environment; nothing where the library is not built."""
    try:
        library = kernel_library()
    except ValueError:
        return {}
    compiler = folder / "compiler"
    compiler.write_text(STAND_IN.format(library=library))
    compiler.chmod(0o755)
    return {"CC": str(compiler), "CXX": str(compiler)}


@pytest.fixture(scope="module", params=["quick", pytest.param("long", marks=pytest.mark.long)])
def installed(request, tmp_path_factory):
    """The wheel and the folder that it is installed into, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--disable-pip-version-check")
    environment = os.environ | (_stand_in(folder) if request.param == "quick" else {})
    build = ("--no-build-isolation", "-w", str(folder), str(ROOT))
    _run("-m", "pip", "wheel", *options, *build, env=environment)
    (wheel,) = folder.glob("*.whl")
    _run("-m", "pip", "install", *options, "--target", str(folder / "site"), str(wheel))
    return wheel, folder / "site"


def test_nothing_but_the_namespace_becomes_importable(installed):
    _, site = installed
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} == {"mfac_compress", "bin"}


def test_every_module_and_recipe_is_in_it(installed):
    wheel, _ = installed
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("mfac", "export", "pipeline", "recipes"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"mfac_compress/{path.relative_to(ROOT).as_posix()}" in names


def test_it_runs_the_quickstart(installed, tmp_path):
    _, site = installed
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = "import mfac_compress.recipes as r; print(r.__path__[0])"
    recipes = Path(_run("-c", where, cwd=tmp_path, env=environment).strip())
    assert recipes.is_relative_to(site)

    report = _run(
        "-m",
        "mfac_compress.pipeline",
        str(recipes / "digits.yaml"),
        str(recipes / "models" / "digits.safetensors"),
        "--json",
        *("--set", "prune.steps=1", "--set", "recover.epochs=1", "--set", "validate.latency=null"),
        *("--set", "quantize=off", "--set", "validate.gates={min_sparsity: 0.8}"),
        cwd=tmp_path,
        env=environment,
    )

    assert json.loads(report)["verdict"] == "pass"
    assert (tmp_path / "runs" / "digits" / "model.onnx").is_file()
