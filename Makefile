# make demo [MESH=file]   everything on one mesh; the first run installs and fetches (minutes)
# make test               the tests, one process for each core (WORKERS=1: in a single process)
# make lint               format, lint, types, layers
# make docs               the documents as a site in site/, without network; `make docs SERVE=1` to read and edit them
# make lock               resolve what CI installs anew, to the hash (requirements-ci.lock)
# make audit              known vulnerabilities of what CI installs; needs PyPI's JSON interface
#
# Needs python3 (3.10 or newer) with venv, make and git. PYTHON and VENV choose another interpreter or folder.

PYTHON ?= python3
VENV ?= .venv
MESH ?= examples/chair.glb
OUT ?= demo_out
WORKERS ?= auto
# CI gives requirements-ci.lock: exactly those files, by their hashes. Without it pip resolves.
LOCK ?=

BIN := $(VENV)/bin
# More than eight would want more memory than most machines have.
SPREAD := $(if $(filter 1,$(WORKERS)),,-n $(WORKERS) --maxprocesses 8 --dist worksteal)
# Without --no-compile pip compiles every module, also those that are never imported.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)

.PHONY: demo test lint docs lock audit clean

demo: $(VENV)/.installed
	$(BIN)/python -m vae_qwen3vl demo "$(MESH)" -o "$(OUT)/$(basename $(notdir $(MESH)))"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SPREAD) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(SERVE),serve,build --strict --quiet)

# PyTorch is left out: which build it is depends on the machine ($(VENV)/.torch below).
lock: $(VENV)/.torch
	$(INSTALL) uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-annotate --no-header --no-emit-package torch --quiet --output-file requirements-ci.lock

audit: $(VENV)/.torch
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --requirement requirements-ci.lock --disable-pip --no-deps --strict

# Without an NVIDIA GPU, PyTorch's CPU build comes first (0.2 GB; the default build brings 3 GB of CUDA). Where its
# index can't be reached, whatever build pip finds has to do.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),0)
	$(INSTALL) --retries 1 --index-url $(TORCH_CPU_INDEX) torch==$(TORCH_VERSION) \
		|| $(INSTALL) torch==$(TORCH_VERSION)
endif
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[language$(if $(filter-out 0,$(GPU)),$(comma)gpu)]'
	touch $@

# The lock has no libraries for a GPU.
$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml $(LOCK)
ifeq ($(and $(LOCK),$(filter 0,$(GPU))),)
	$(INSTALL) -e '.[dev$(if $(filter-out 0,$(GPU)),$(comma)gpu)]'
else
	$(INSTALL) --no-deps --require-hashes --requirement $(LOCK)
	$(INSTALL) --no-deps -e .
endif
	touch $@

clean:
	rm -rf $(VENV) $(OUT) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

comma := ,
