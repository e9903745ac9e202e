# Everything here is also written as plain commands in README.md, for machines without make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-faults test-inductor lint

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-bench.txt requirements-eval.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

install: .venv/installed

demo: .venv/installed
	PYTHON=$(BIN)/python bash runs/demo.sh

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-faults: .venv/installed-dev
	ALL_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Triton is for CUDA machines: beside the CPU wheel it lies in a folder of its own, which only this target looks into.
.inductor/triton: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .inductor triton==3.7.1
	touch $@

test-inductor:
	@$(MAKE) --silent .inductor/triton || echo "not run: triton could not be installed"
	@PYTHONPATH=.inductor $(BIN)/python -m benchmarks.inductor
