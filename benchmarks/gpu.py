"""Run what only a GPU can show, and write a table of it: `make gpu`.

    python benchmarks/gpu.py [--output build/gpu.md] [--quick]

The tests marked `cuda`, the quickstart recipe, the same in two processes over nccl where there are
two GPUs, and every benchmark of the engine. Without CUDA it says so, and exits with 0.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
DIGITS = ["recipes/digits.yaml", "recipes/models/digits.safetensors", "--set", "run.device=cuda"]
PIPELINE = ["-m", "mfac_compress.pipeline"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu.md")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the command")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"skipped: PyTorch {torch.__version__} finds no CUDA device; nothing was written")
        return 0
    folder = options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    quick = ["--quick"] if options.quick else []
    work = {
        "tests": ["-m", "pytest", "-q", "-m", "cuda"],
        "digits": [*PIPELINE, *DIGITS, "-o", f"{folder}/digits"],
        "inverse": ["benchmarks/static_inverse.py", "--device", "cuda", *quick],
        "optimizer": ["benchmarks/optimizer_step.py", "--device", "cuda", *quick],
        "optimizer, bfloat16": [
            *("benchmarks/optimizer_step.py", "--device", "cuda"),
            *("--window-dtype", "bfloat16", *quick),
        ],
        "gradients": ["benchmarks/calibration.py", *DIGITS[:2], "--device", "cuda"],
    }
    if torch.cuda.device_count() > 1:
        work["digits, two processes"] = [*TORCHRUN, *PIPELINE, *DIGITS, "-o", f"{folder}/two"]
    rows, texts, failed = [], [], 0
    for name, command in work.items():
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        failed += done.returncode != 0
        outcome = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
        rows.append(f"| {name} | {outcome} | {time.perf_counter() - start:.1f} |")
        print(rows[-1], flush=True)
        text = (done.stdout + done.stderr).strip()
        texts.append(f"## {name}\n\n```\n{' '.join(command)}\n\n{text}\n```\n")
    rows.append(_processes(folder))
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    head = f"# On {', '.join(names)}\n\nPyTorch {torch.__version__}, CUDA {torch.version.cuda}\n"
    table = "\n".join(["| what | outcome | seconds |", "|---|---|---|", *rows])
    options.output.write_text("\n".join([head, table, "", *texts]))
    print(f"written: {options.output}")
    return int(failed > 0)


def _processes(folder: Path) -> str:
    """Row of the table: masks of two processes against those of one."""
    if torch.cuda.device_count() < 2:
        return "| nccl | skipped: two processes need two GPUs, and there is one | |"
    try:
        one, two = (load_file(folder / run / "masks.safetensors") for run in ("digits", "two"))
    except OSError as error:
        return f"| nccl | no masks to compare: {error} | |"
    differing = sum(int((one[name] != two[name]).sum()) for name in one)
    return f"| nccl | masks of two processes differ from one's in {differing} weights | |"


if __name__ == "__main__":
    sys.exit(main())
