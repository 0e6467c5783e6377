# Set-up on a fresh machine with Python >= 3.10 and make; everything lives in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed  ## the quickstart recipe on embedded data, ends with the verdict table
	$(BIN)/mfac-compress recipes/digits.yaml recipes/models/digits.safetensors -o runs/digits

test: .venv/installed  ## the test suite
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard export/kernels/*.?pp export/kernels/simd/*.hpp)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
