"""All attacks, one after the other: ``make attack``.

Thousands of hostile inputs, made from seeds. Each attack says what it tried and what was
mishandled: what ran code, hung, printed a traceback, ended with a wrong exit code, or passed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ATTACKS = {
    "models": 700,
    "data": 800,
    "recipes": 600,
    "foreign_recipes": 800,
    "onnx_files": 300,
    "caches": 120,
}
"""Script to number of inputs."""


def main(seed: int) -> int:
    """Run every attack; returns how many of them found something."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = 0
    for name, count in ATTACKS.items():
        start = time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        command += ["--count", str(count), "--seed", str(seed)]
        print(f"{name}:", flush=True)
        found += subprocess.run(command, env=environment, check=False).returncode != 0
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    print(f"{sum(ATTACKS.values()):,} inputs; {found} of {len(ATTACKS)} attacks found something")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(1 if main(parser.parse_args().seed) else 0)
