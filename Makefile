# Everything a fresh clone needs. `make demo` to see it work, `make test` to check a change.

# The first of these that runs and is new enough.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO ?=
TESTS ?=
FAULTS ?= tests/faults
# Of huggingface_hub, beside the newest: the oldest that is still common, and the last that mlx-lm
# can upload with.
HUBS := 0.36.2 1.33.0

.PHONY: install demo test lint fmt bench faults clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo 'Espalier needs Python 3.11 or newer: install one, or say make PYTHON=/path/to/it' >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

# Bytecode is made when it is needed: compiling all of it doubles the time.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(HUBS:%=$(VENV)/hubs/%/.installed) | $(BIN)/python
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[all,dev]'
	@touch $(VENV)/.installed $@

# In folders of their own; what they need is what the newest needs.
$(VENV)/hubs/%/.installed: | $(BIN)/python
	$(PIP) install --quiet --no-compile --no-deps --upgrade --target $(@D) huggingface_hub==$*
	@touch $@

# The whole path on this machine; ONCE=1 stops after the pipeline.
demo: install
	$(BIN)/espalier demo $(if $(ONCE),--once) $(DEMO)

# TESTS=tests/unit runs a part.
test: $(VENV)/.dev
	CHROMIUM="$$(tests/system.sh $(BIN)/python)" $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.train_throughput
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.hub --all

# What dies in the middle, at length: real processes, then the simulation. FAULTS names a part.
faults: $(VENV)/.dev
	$(BIN)/pytest -s $(FAULTS)
	$(BIN)/python -m tests.simulation --seeds 10000
	$(BIN)/python -m tests.simulation --seeds 1000 --database postgresql

clean:
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
