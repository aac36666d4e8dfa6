# Needs Python 3.11 or newer and nothing else: everything is installed into a virtual environment in this folder.
# `make help` lists the targets.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --constraint constraints.txt
PACKAGING := setup.py pyproject.toml constraints.txt
DEMO_INSTALLED := $(VENV)/.demo-installed
APP_INSTALLED := $(VENV)/.app-installed
DEV_INSTALLED := $(VENV)/.dev-installed
DEMO_ARGS ?=
APP_ARGS ?=
EDITING := pipeline_dynadrag embedded_checkpoint identity_lora kv_replacement ddim_inversion
FLOOR_TESTS := tests/conversion tests/motion_predictor/test_modeling_motion_predictor.py \
	$(EDITING:%=tests/dynadrag_pipeline/test_%.py)

.DEFAULT_GOAL := help
.PHONY: help demo app test docs lint floors floors-in-venv clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

demo: $(DEMO_INSTALLED) ## drag a real portrait; DEMO_ARGS="--edit hopper_smile" for another edit
	@$(BIN)/python examples/demo/run_demo.py $(DEMO_ARGS)

app: $(APP_INSTALLED) ## drag with the mouse in a browser; prints the address. APP_ARGS="--port 8000"
	@$(BIN)/dynadrag app $(APP_ARGS)

test: $(DEV_INSTALLED) ## run all tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 10

docs: $(DEV_INSTALLED) ## write the pages that are made from the code
	@$(BIN)/python docs/make_pages.py

lint: $(DEV_INSTALLED) ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy tests/typing/call.py

floors: ## run the main tests with the oldest versions that setup.py allows
	@$(MAKE) --no-print-directory VENV=build/floors-venv floors-in-venv

# What setup.py asks for as "name>=version" is installed as name==version, and the rest as pip likes.
floors-in-venv: $(BIN)/activate
	@grep -oE '"[A-Za-z_-]+>=[0-9.]+' setup.py | sed 's/"//; s/>=/==/' > $(VENV)/floors.txt
	@$(BIN)/python -m pip install -qq --constraint $(VENV)/floors.txt --editable '.[dev]'
	@$(BIN)/python -m pytest $(FLOOR_TESTS)

clean: ## remove the virtual environment, caches and build leftovers; results stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_INSTALLED): $(PACKAGING) | $(BIN)/activate
	@echo "Installing dynadrag and what the demo needs into $(VENV): some minutes, once."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(APP_INSTALLED): $(PACKAGING) | $(BIN)/activate
	@echo "Installing dynadrag and what the app needs into $(VENV): some minutes, once."
	@$(PIP) --editable '.[app]'
	@touch $@ $(DEMO_INSTALLED)

$(DEV_INSTALLED): $(PACKAGING) | $(BIN)/activate
	@echo "Installing dynadrag and its development tools into $(VENV): some minutes, once."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(APP_INSTALLED) $(DEMO_INSTALLED)

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
