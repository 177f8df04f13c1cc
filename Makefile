# Each target sets up what it needs in .venv by itself; a second call finds the stamps and goes straight to work.
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done)
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test slow check lint types docs packaging bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.hansa-base ## a hub and four hospitals as processes on this machine train one model, live
	@$(BIN)/hansa demo

test: $(VENV)/.hansa-dev ## every test that is not slow, and the examples of the documentation
	@$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

slow: $(VENV)/.hansa-dev ## the proofs that take longer
	@$(BIN)/python -m pytest -q -n $(WORKERS) -m slow tests || [ $$? -eq 5 ]

check: lint types docs ## style, types, imports, public names and the documentation
	@$(BIN)/python -m pytest -q -m "not slow" tests/test_architecture.py tests/test_public_names.py

lint: $(VENV)/.hansa-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(VENV)/.hansa-dev
	@$(BIN)/mypy

docs: $(VENV)/.hansa-dev ## build the documentation into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

packaging: $(VENV)/packaging/.linters ## lint the Dockerfile, the compose file and the systemd units
	@packaging/check $(VENV)/packaging/bin

bench: $(VENV)/.hansa-dev ## measure what the project promises, each figure beside its reference
	@$(BIN)/python -m bench

clean: ## remove what the other targets made
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Hansa needs Python 3.11, 3.12 or 3.13 on the PATH, or: make PYTHON=/path/to/python"; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.hansa-base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Hansa into $(VENV)"
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[net,sklearn]'
	@touch $@

$(VENV)/.hansa-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Hansa with everything its development needs into $(VENV); a few minutes, once"
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/.hansa-base

$(VENV)/packaging/.linters: packaging/linters.txt constraints.txt | $(BIN)/python
	@echo "installing the linters of packaging/ into $(VENV)/packaging"
	@$(BIN)/python -m venv $(VENV)/packaging
	@$(VENV)/packaging/bin/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --requirement packaging/linters.txt
	@touch $@
