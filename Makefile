# `make help` lists the targets. Everything is written inside the checkout, except fetched models and data (the cache).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The tests run in a process per core, each with one torch thread. PYTEST_ARGS comes after it: PYTEST_ARGS="-n 0" runs
# them in one process, PYTEST_ARGS="-x tests/tasks" stops at the first failure of some.
PARALLEL := -n logical --maxprocesses=4 --dist=worksteal

# Handed to commands by the environment: quotes and dollars in it are then nobody's syntax.
override export TEXT := $(value TEXT)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast lint bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install softprompt into it, once per change of the dependencies

# The stamp is touched last: an install that broke off is run again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); softprompt needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@echo "Setting up $(VENV): pip downloads about 500 MB (3 GB where it finds torch with CUDA only), two to five minutes" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## Tune a prompt on a real model and print what it learned
	@echo "The demo takes one to five minutes; the first one also fetches a model and its data (450 MB)" >&2
	$(BIN)/python examples/demo.py $(if $(TEXT),"$$TEXT")

serve: setup runs/demo/prompt/prompt.json  ## Serve the demo's prompt and two more over HTTP, on this machine alone
	$(BIN)/python examples/serve.py
	$(BIN)/softprompt serve runs/serve

runs/demo/prompt/prompt.json: | setup
	$(MAKE) demo

# Tests start many Python processes: each would compile the sources again where no byte code may be written.
test test-fast: export PYTHONDONTWRITEBYTECODE :=

test: setup  ## Run the whole suite, real models and the examples included
	@echo "The whole suite takes five to ten minutes on two cores; the first time it also fetches models and data (1 GB)" >&2
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-fast: setup  ## Run the tests that need no fetched model and are not slow
	@echo "The fast tests take one to two minutes on two cores" >&2
	$(BIN)/python -m pytest -m 'not real and not slow and not browser' $(PARALLEL) $(PYTEST_ARGS)

lint: setup  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## Run the quick benchmark of causal prompt tuning
	$(BIN)/python -m benchmarks.causal_prompt_tuning --quick

clean:  ## Remove .venv, builds and tool caches
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
