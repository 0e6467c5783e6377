"""Load an ONNX file and run it, in a process that may hang or crash; :mod:`trial` starts it.

It is run as a file, so that nothing else of the package is imported. It prints each step to stdout
before it begins, and also an error of ONNX Runtime.
"""

import sys

sys.path[:] = [each for each in sys.path if each != __file__.rpartition("/")[0]]  # our operator.py

import contextlib  # noqa: E402
import ctypes  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

_SIGNAL_AT_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def main(model: str, memory: int, names: str, feeds: list[str]) -> None:
    """Load a file with and without optimisations and run it on each of some inputs.

    Args:
        model: ONNX file.
        memory: Bytes that the process may use.
        names: JSON file of the inputs' names.
        feeds: Files of inputs (.npz), whose keys are positions in that list.
    """
    _limit(memory)
    for name in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
        _say("load", "")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for path in feeds:
            with np.load(path) as arrays, open(names, encoding="utf-8") as file:
                inputs = {name: arrays[str(n)] for n, name in enumerate(json.load(file))}
            _say("run", path)
            session.run(None, inputs)


def _limit(memory: int) -> None:
    """Make this process end with its parent, and be killed first if memory runs out."""
    with contextlib.suppress(AttributeError, OSError):  # where there is no prctl
        ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGKILL)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _say(what: str, about: str) -> None:
    os.write(_PIPE, json.dumps([what, about]).encode() + b"\n")


if __name__ == "__main__":
    _PIPE = os.dup(1)
    os.dup2(2, 1)  # other output must not be taken for a step
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except BaseException as error:
        _say("error", f"{type(error).__name__}: {error}")
        os._exit(1)
    _say("done", "")
    os._exit(0)  # skips ONNX Runtime's cleanup, which is not needed
