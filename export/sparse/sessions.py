"""Open files with sparse operators."""

import os
from collections.abc import Sequence
from typing import Any

import onnxruntime

from mfac_compress.export.session import load
from mfac_compress.export.sparse.library import kernel_library


def sparse_session(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    **session_options: Any,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime with the sparse kernels registered.

    Args:
        path: ``model.sparse.onnx``. A plain file opens as well.
        providers: Execution providers of ONNX Runtime. The sparse operators run on the CPU.
        session_options: Attributes of ``onnxruntime.SessionOptions``, such as
            ``intra_op_num_threads=1``.
    Returns:
        An ordinary ONNX Runtime session.
    Raises:
        ValueError: If the kernels are not built, there is no such file, option or provider, or
            ONNX Runtime cannot load the file.
    """
    path = os.fspath(path)
    library = kernel_library()
    _check(providers)
    if not os.path.isfile(path):
        raise ValueError(f"There must be an ONNX file at {path}. Found none.")
    options = onnxruntime.SessionOptions()
    for name, value in session_options.items():
        _set(options, name, value)
    options.register_custom_ops_library(str(library))
    return load(path, options, providers=providers)


def _check(providers: Any) -> None:
    """Refuse unknown providers: ONNX Runtime would ignore them and run on the CPU."""
    known = onnxruntime.get_available_providers()
    listed = isinstance(providers, (list, tuple))
    if not listed or not all(_is_one_of(known, each) for each in providers):
        raise ValueError(
            "providers must be a list of names, or of (name, options) with options a dict, out of "
            f"those of this ONNX Runtime: {', '.join(known)}. Got {providers!r}."
        )


def _is_one_of(known: Sequence[str], provider: Any) -> bool:
    if isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], dict):
        provider = provider[0]
    return isinstance(provider, str) and provider in known


def _set(options: onnxruntime.SessionOptions, name: str, value: Any) -> None:
    known = [each for each in dir(options) if isinstance(getattr(type(options), each), property)]
    if name not in known:
        raise ValueError(
            f"Session options must be attributes of onnxruntime.SessionOptions: {', '.join(known)}."
            f" Got {name}. For config entries, make a session with SessionOptions and "
            "register_custom_ops_library(kernel_library())."
        )
    try:
        setattr(options, name, value)
    except TypeError as error:
        raise ValueError(f"The session option {name} does not take {value!r}: {error}") from error
