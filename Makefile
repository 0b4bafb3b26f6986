# Each target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Umbel and its tools into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The checkout's folders under their import names, for tools that read files and not packages.
.PHONY: build/tree
build/tree:
	@mkdir -p $@/umbel
	@ln -sfn ../../../config $@/umbel/config
	@ln -sfn ../../../routing $@/umbel/routing
	@ln -sfn ../../../jobs $@/umbel/jobs
	@ln -sfn ../../../producers $@/umbel/producers
	@ln -sfn ../../../consumers $@/umbel/consumers
	@for f in umbel/*; do ln -sfn ../../../$$f $@/$$f; done

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
