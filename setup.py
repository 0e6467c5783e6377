"""Build the sparse kernels where there is a C++ compiler; setup.cfg holds everything else.

Without a compiler the install goes on, and `kernel_library()` says what is missing.
"""

import logging
import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("export", "kernels")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-Wno-psabi", "-Wno-maybe-uninitialized", "-g0"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"]
X86_FLAGS = {
    "simd_avx2.cpp": AVX2,
    "simd_avx512.cpp": AVX512,
    "simd_avx512vnni.cpp": [*AVX512, "-mavx512vnni"],
    "simd_avxvnni.cpp": [*AVX2, "-mavxvnni"],
}
# What GCC before 11, Clang before 12 and older assemblers cannot compile.
NEEDS = {
    "simd_avxvnni.cpp": "#include <immintrin.h>\n"
    "__m256i probe(__m256i x) { return _mm256_dpbusd_avx_epi32(x, x, x); }\n"
}


def is_x86():
    """Whether the instruction sets of x86 can be compiled for."""
    return platform.machine() in ("x86_64", "AMD64")


class BuildKernels(build_ext):
    """A plain shared library, each instruction set's source with its own flags.

    Sources are compiled side by side, those for vectors first, which take most of the time. A
    source whose instructions the compiler does not know is compiled without its flags.
    """

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        sources = sorted(ext.sources, key=lambda source: "simd_" not in source)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(self._compile, sources) for path in paths]
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, path, target_lang="c++")

    def _compile(self, source):
        name = Path(source).name
        extra = X86_FLAGS.get(name, []) if is_x86() else []
        if extra and name in NEEDS and not self._compiles(NEEDS[name], extra):
            logging.warning("%s: the compiler does not support %s", name, extra[-1])
            extra = []
        options = {"output_dir": self.build_temp, "extra_postargs": FLAGS + extra}
        return self.compiler.compile([source], **options)

    def _compiles(self, text, flags):
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text(text, encoding="utf-8")
            try:
                self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True


class AnyPython(bdist_wheel):
    """The library knows no Python: one wheel serves every version of it."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
        ext_modules=[
            Extension(
                "mfac_compress.export.kernels.libmfac_sparse",
                sources=sorted(str(path) for path in KERNELS.glob("*.cpp")),
                depends=sorted(str(path) for path in KERNELS.rglob("*.hpp")),
                language="c++",
                optional=True,
            )
        ],
    )
