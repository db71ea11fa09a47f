# Two commands do everything on a fresh machine: `make demo` and `make test`.
#   TORCH_INDEX=URL    index to take torch from; PyTorch's CPU index spares gigabytes of CUDA packages
#   PYTHON=python3.12  interpreter of the virtual environment (3.11 or newer)
#   DEMO_ARGS=…        more arguments for `peerless train`, e.g. DEMO_ARGS="--peers 8"
#   PYTEST_ARGS=…      more arguments for pytest, e.g. PYTEST_ARGS="-k codec"

PY := .venv/bin/python
DEMO_ARGS ?=
PYTEST_ARGS ?=
THREE_ROUNDS := --set epochs=1 --set data.train_samples=3072 --set data.validation_samples=512
export PYTHON TORCH_INDEX

.PHONY: help setup demo deploy-local test test-slow lint format synth clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 14
	@sed -n 's/^#   /  /p' Makefile

setup:  ## the virtual environment in .venv, with everything that demo and test need
	@./setup.sh

demo: setup  ## four peers train on MNIST through Lambda workers, Step Functions and RabbitMQ
	@$(PY) -m peerless train examples/mnist.toml --local $(DEMO_ARGS)

deploy-local: setup  ## the CDK stacks on the local AWS: deployed, trained on for three rounds, destroyed
	@$(PY) -m peerless local status | grep -q "^state *stopped" || \
		{ echo "Local servers run here already; stop them first: $(PY) -m peerless local down" >&2; exit 1; }
	@trap 'exit 130' INT TERM; trap '$(PY) -m peerless local down >/dev/null' EXIT; set -e; \
	$(PY) -m peerless local up; \
	$(PY) -m peerless deploy examples/mnist.toml --local; \
	$(PY) -m peerless train examples/mnist.toml --local --deployed $(THREE_ROUNDS) $(DEMO_ARGS); \
	$(PY) -m peerless destroy --local --purge --yes

test: lint  ## lint, types and the test suite, in two processes (under ten minutes)
	@$(PY) -m pytest -m "not slow" -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: setup  ## the tests that do not fit `make test`, in two processes (under thirty minutes)
	@$(PY) -m pytest -m slow -n 2 --no-loadscope-reorder --timeout 600 $(PYTEST_ARGS)

lint: setup  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

locks: setup  ## the images' lock files, resolved again (needs package indexes)
	@$(PY) -m infra.images locks

format: setup  ## ruff's formatting and mechanical corrections
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

synth: setup  ## the templates of all stacks, into cdk.out: offline, without credentials and Docker
	@rm -rf cdk.out
	@$(PY) app.py

clean:  ## remove the virtual environment, what was built, and caches; runs/ stays
	rm -rf .venv cdk.out .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	cd vendor/qsgd_compress && rm -rf .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info src/qsgd_compress/_native*.so
