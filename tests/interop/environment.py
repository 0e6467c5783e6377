"""The environment of the peer: SparseML 1.8 beside today's PyTorch, away from our own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch==2.13.0", "sparseml==1.8.0", "sparsezoo<1.9", "setuptools<81")
_MINUTES = 20


class UnavailableError(Exception):
    """The environment cannot be built; the message says why."""


def peer_python() -> Path:
    """Return the interpreter of the peer, and build its environment where there is none.

    ``MFAC_INTEROP_ENV`` names another folder than ``build/interop/env``.

    Raises:
        UnavailableError: If it cannot be built.
    """
    folder = Path(os.environ.get("MFAC_INTEROP_ENV", ROOT / "build" / "interop" / "env"))
    python = folder / "bin" / "python"
    if python.exists() and _has_sparseml(python):
        return python
    print(f"building {folder}: {', '.join(PACKAGES)}", flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        try:
            ended = subprocess.run(
                [str(part) for part in command],
                capture_output=True,
                text=True,
                timeout=60 * _MINUTES,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"{command[1:4]}: {error}") from error
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no word"])[-1]
            raise UnavailableError(f"pip or venv ended with {ended.returncode}: {last}")
    if not _has_sparseml(python):
        raise UnavailableError("sparseml is installed, and cannot be imported")
    return python


def _has_sparseml(python: Path) -> bool:
    code = "import sparseml.pytorch.optim"
    ended = subprocess.run([python, "-c", code], capture_output=True, check=False)
    return ended.returncode == 0


def ask(python: Path, question: str, folder: Path) -> None:
    """Let the peer work in a folder, on one thread.

    Raises:
        RuntimeError: If it fails; with the end of what it said.
    """
    command = [str(python), str(Path(__file__).with_name("peer.py")), question, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"peer {question}: {ended.stderr[-1500:]}")
