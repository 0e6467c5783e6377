"""Try an untrusted file in a separate process, before our own process opens it.

ONNX Runtime may take forever to load or run a file, use all memory, or crash: that ends the trial
and is an error of the file.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from mfac_compress.export.sparse.probe import Feeds

_TO_START = 60.0  # seconds, on a busy machine
_PROCESS = Path(__file__).with_name("trial_process.py")


def try_file(path: str | os.PathLike[str], feeds: Sequence[Feeds], *, seconds: float) -> None:
    """Load a file and run it on inputs.

    Args:
        path: ONNX file.
        feeds: Inputs for each call, always in the same order.
        seconds: Time limit for loading, and for each call.
    Raises:
        ValueError: If ONNX Runtime refuses the file or the inputs, exceeds the limit, or crashes.
    """
    path = os.path.abspath(path)
    with tempfile.TemporaryDirectory(prefix="mfac-trial-") as folder:
        files = [os.path.join(folder, f"{place}.npz") for place in range(len(feeds))]
        for file, arrays in zip(files, feeds, strict=True):
            np.savez(file, **{str(place): array for place, array in enumerate(arrays.values())})
        names = Path(folder) / "names.json"
        names.write_text(json.dumps(list(feeds[0]) if feeds else []), encoding="utf-8")
        memory = str(psutil.virtual_memory().available)
        process = subprocess.Popen(
            [sys.executable, str(_PROCESS), path, memory, str(names), *files],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            _follow(process, path, dict(zip(files, feeds, strict=True)), seconds)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _follow(process: subprocess.Popen, path: str, feeds: dict[str, Feeds], seconds: float) -> None:
    """Wait until each step has ended."""
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    step, about = "start", ""
    while True:
        try:
            line = lines.get(timeout=max(seconds, _TO_START) if step == "start" else seconds)
        except queue.Empty:
            raise ValueError(_too_long(path, step, seconds)) from None
        if not line:
            raise ValueError(_crashed(path, step, process.wait()))
        following, what = json.loads(line)
        if following == "done":
            return
        if following == "error":
            raise ValueError(_refused(path, step, what, feeds.get(about, {})))
        step, about = following, what


def _read(process: subprocess.Popen, lines: "queue.Queue[bytes]") -> None:
    """Queue each line that a process prints, and an empty one once it has ended."""
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def _too_long(path: str, step: str, seconds: float) -> str:
    what = "A call" if step == "run" else "Loading it"
    return (
        f"ONNX Runtime must load {path} within {seconds:g} seconds, and run it within as many. "
        f"{what} did not end. If the model needs longer, allow more time (--timeout)."
    )


def _crashed(path: str, step: str, code: int) -> str:
    try:
        how = f"{signal.Signals(-code).name}"
    except ValueError:
        how = f"exit code {code}"
    return (
        f"ONNX Runtime must be able to load and run {path}. It crashed ({how}) in the step "
        f"'{step}': the file is broken, or needs more memory than is available."
    )


def _refused(path: str, step: str, error: str, feeds: Feeds) -> str:
    if step != "run":
        return (
            f"ONNX Runtime must be able to load {path}. The file may be truncated, or "
            f"need a newer ONNX Runtime. ONNX Runtime said: {error}"
        )
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    return (
        f"The model must run on inputs of shapes {shapes}. ONNX Runtime said: {error}. Give other "
        "shapes."
    )
