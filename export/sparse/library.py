"""The path of the compiled kernels."""

from pathlib import Path

LIBRARY = "libmfac_sparse.so"


def kernel_library() -> Path:
    """Return the path of the shared library for ``register_custom_ops_library``.

    ONNX Runtime can load it from any language (Python, C, C++, C#, Java). ``pip install`` builds it
    if there is a C++ compiler.

    Raises:
        ValueError: If it was not built.
    """
    path = Path(__file__).resolve().parent.parent / "kernels" / LIBRARY
    if not path.is_file():
        raise ValueError(
            f"The sparse kernels must be built as {path}. Found none: there was no C++17 compiler "
            "when mfac-compress was installed. Install one (g++ or clang++) and run "
            "`pip install --force-reinstall --no-deps mfac-compress`, or `pip install -e .` in a "
            "checkout."
        )
    return path
