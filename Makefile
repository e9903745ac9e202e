# README.md and CONTRIBUTING.md have plain commands for machines without make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-faults test-inductor test-pages test-mutants test-runtimes lint types

.venv/installed: requirements.txt runs/install.py
	$(PYTHON) runs/install.py
	touch $@

.venv/installed-dev: requirements-dev.txt pyproject.toml .venv/installed
	$(PYTHON) runs/install.py --dev
	touch $@

install: .venv/installed

demo: .venv/installed
	$(BIN)/python runs/demo.py

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-faults: .venv/installed-dev
	ALL_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/stage

test-pages: .venv/installed-dev
	PAGES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m pages tests/export tests/pages

test-runtimes: .venv/installed-dev
	RUNTIMES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m runtimes tests/checkpoint tests/export tests/generate tests/test_loop.py

test-mutants: .venv/installed-dev
	$(BIN)/python tests/mutation/run.py $(MUTANTS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Triton is for CUDA machines: with the CPU wheel it is installed into a separate folder, which only this target reads.
.inductor/triton: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .inductor triton==3.7.1
	touch $@

test-inductor:
	@$(MAKE) --silent .inductor/triton || echo "not run: triton could not be installed"
	@PYTHONPATH=.inductor $(BIN)/python -m benchmarks.inductor
