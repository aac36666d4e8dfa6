# Needs Python 3.11 or newer and nothing else: everything is installed into a virtual environment in this folder.
# `make help` lists the targets.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --constraint constraints.txt
PACKAGING := setup.py pyproject.toml constraints.txt
DEMO_INSTALLED := $(VENV)/.demo-installed
DEV_INSTALLED := $(VENV)/.dev-installed
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

demo: $(DEMO_INSTALLED) ## drag a real portrait; DEMO_ARGS="--edit hopper_smile" for another edit
	@$(BIN)/python examples/demo/run_demo.py $(DEMO_ARGS)

test: $(DEV_INSTALLED) ## run all tests
	@$(BIN)/python -m pytest

lint: $(DEV_INSTALLED) ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean: ## remove the virtual environment, caches and build leftovers; results stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_INSTALLED): $(PACKAGING) | $(BIN)/activate
	@echo "Installing dynadrag and what the demo needs into $(VENV): some minutes, once."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(DEV_INSTALLED): $(PACKAGING) | $(BIN)/activate
	@echo "Installing dynadrag and its development tools into $(VENV): some minutes, once."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(DEMO_INSTALLED)

# The first interpreter that runs and is new enough. `activate` is the last file that venv writes.
$(BIN)/activate:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "Making a virtual environment in $(VENV) with `$$python --version`."; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "dynadrag needs Python 3.11 or newer; found none in: $(or $(PYTHON),the search path). Say where it is:" >&2; \
	echo "    make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1
