# Two commands do everything on a fresh machine: `make demo` and `make test`.
# TORCH_INDEX=URL   index to install torch from (PyTorch's CPU index spares gigabytes of CUDA packages)
# PYTHON=python3.12 interpreter for the virtual environment (3.11 or newer)

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help setup demo test test-slow lint format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## the virtual environment in .venv, with everything that demo and test need

$(STAMP): pyproject.toml vendor/qsgd_compress/pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Peerless needs Python 3.11 or newer on the PATH (or PYTHON=/path/to/python3.11)." >&2; exit 1; }
	@case "$$(uname -s)" in Linux|Darwin) ;; *) echo "Peerless runs on Linux and macOS; on Windows use WSL2." >&2; exit 1;; esac
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import importlib.metadata as m; assert m.version("torch").startswith("2.13.0")' 2>/dev/null \
		|| { echo "installing torch 2.13.0 …"; $(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0; }
	@echo "installing the other dependencies …"
	@$(BIN)/pip install --quiet -e 'vendor/qsgd_compress[test]' -e '.[local,test]'
	@touch $(STAMP)

demo: setup  ## four peers train on MNIST through Lambda workers, Step Functions and RabbitMQ
	@$(BIN)/peerless train examples/mnist.toml --local $(DEMO_ARGS)

test: setup  ## lint, types and the test suite (under ten minutes)
	@$(MAKE) --no-print-directory lint
	@$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

test-slow: setup  ## the tests that do not fit `make test` (under thirty minutes)
	@$(BIN)/pytest -m slow $(PYTEST_ARGS)

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup  ## ruff's formatting and mechanical corrections
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
