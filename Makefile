# Everything here is also written as plain commands in README.md, for machines without make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-faults test-pages test-planted lint types

.venv/installed: requirements.txt runs/install.py
	$(PYTHON) runs/install.py
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PYTHON) runs/install.py --dev
	touch $@

install: .venv/installed

demo: .venv/installed
	$(BIN)/python runs/demo.py

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

test-faults: .venv/installed-dev
	ALL_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

test-pages: .venv/installed-dev
	PAGES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/pages

test-planted: .venv/installed-dev
	$(BIN)/python tests/plant/run.py $(PLANTED)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python
