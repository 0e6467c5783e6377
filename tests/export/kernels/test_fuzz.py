"""Hostile nodes under AddressSanitizer and UndefinedBehaviorSanitizer: refused or run, no report.

The templates of simd/ are compiled for each instruction set, which takes most of the time. The
short form looks for undefined behaviour in those for any processor alone, and for wrong addresses,
which depend on the width of the vectors, in all. `make kernels-fuzz` looks for both in all.
"""

import os
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "export" / "kernels"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ADDRESSES = ["-fsanitize=address"]
SECONDS = os.environ.get("MFAC_FUZZ_SECONDS", "2")


def _compiler():
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: g++ or clang++")
    return compiler


def _run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["short", pytest.param("long", marks=pytest.mark.long)])
def fuzz(request, tmp_path_factory):
    """The kernels and the driver, built with the flags of the library and the sanitizers."""
    folder = tmp_path_factory.mktemp("fuzz")
    compiler = _compiler()
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    probe = _run(compiler, *SANITIZE, str(folder / "empty.cpp"), "-o", str(folder / "empty"))
    if probe.returncode or _run(str(folder / "empty")).returncode:
        pytest.skip(f"{compiler} has no sanitizers: {probe.stderr.strip()[:200]}")
    build = runpy.run_path(str(ROOT / "setup.py"))
    # With any optimisation the vector sources take minutes to compile.
    flags = [flag for flag in build["FLAGS"] if flag != "-O3"] + ["-O0", f"-I{KERNELS}"]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        extra = build["X86_FLAGS"].get(source.name, []) if build["is_x86"]() else []
        sanitize = ADDRESSES if extra and request.param == "short" else SANITIZE
        result = _run(compiler, *flags, *sanitize, *extra, "-c", str(source), "-o", str(target))
        assert result.returncode == 0, result.stderr
        return str(target)

    sources = [*KERNELS.glob("*.cpp"), Path(__file__).parent / "fuzz.cpp"]
    # The linker takes inline functions from the first object: not from one without a sanitizer.
    sources.sort(key=lambda source: source.name in build["X86_FLAGS"])
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    result = _run(compiler, *SANITIZE, *objects, "-pthread", "-o", str(folder / "fuzz"))
    assert result.returncode == 0, result.stderr
    return folder / "fuzz"


@pytest.mark.parametrize("instruction_set", ["avx512vnni", "avx512", "avxvnni", "avx2", "portable"])
def test_nothing_is_reported(fuzz, instruction_set, first_caches, monkeypatch):
    monkeypatch.setenv("MFAC_SPARSE_ISA", instruction_set)
    monkeypatch.setenv("MFAC_SPARSE_L1D", first_caches[instruction_set])
    result = _run(str(fuzz), SECONDS)
    print(result.stdout)
    assert result.returncode == 0, result.stderr[-4000:]
