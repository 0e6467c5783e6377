# Set-up on a fresh machine with Python >= 3.10 and make; everything lives in .venv.
PYTHON ?= python3
BIN = .venv/bin
MAM = runs/mam-ising$(SIDE:%=-%)

.PHONY: demo mam test test-long attack faults interop gpu lint kernels-fuzz kernels-matrix kernels-aarch64 clean

demo: .venv/installed  ## the quickstart recipe on embedded data, ends with the verdict table
	$(BIN)/mfac-compress recipes/digits.yaml recipes/models/digits.safetensors -o runs/digits

mam: .venv/installed  ## a marginalization model: trained, compressed, judged by its own metrics, plotted; SIDE=10 of 10 x 10 spins (docs/marginalization-models.md)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mam_ising.py $(MAM) --plot $(MAM)/plot.svg $(SIDE:%=--side %)

test: .venv/installed  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test-long: .venv/installed  ## simulations, attacks, sanitizers and a wheel in their long form
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long -n auto --maxprocesses 4 --dist worksteal

attack: .venv/installed  ## some 3,300 hostile models, data sets, recipes, ONNX files and caches, in a quarter of an hour
	$(BIN)/python tests/attack/run.py

faults: .venv/installed  ## a run killed 100 times at random moments and started again; some five minutes
	$(BIN)/python tests/faults/run.py --kills 100

interop: .venv/installed  ## side by side with SparseML 1.8, in an environment of its own; writes build/interop.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/interop/run.py

gpu: .venv/installed  ## what only a GPU can show; writes build/gpu.md
	$(BIN)/python benchmarks/gpu.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

kernels-fuzz: .venv/installed  ## hostile sparse operators under the sanitizers, a minute each
	MFAC_FUZZ_SECONDS=60 $(BIN)/pytest -s -m long tests/export/kernels/test_fuzz.py

kernels-matrix: .venv/installed  ## the sparse kernels in the oldest, a middle and the newest ONNX Runtime
	tests/export/kernels/matrix.sh $(BIN)/python 1.22.0 1.24.1 latest

kernels-aarch64: .venv/installed  ## the sparse kernels on aarch64, emulated (needs Debian's qemu-user-static, see the script)
	tests/export/kernels/aarch64.sh $(BIN)/python

.venv/installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard export/kernels/*.?pp export/kernels/simd/*.hpp)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
