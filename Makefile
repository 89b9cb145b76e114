# make demo [MESH=file]   everything on one mesh; the first run installs and fetches (minutes)
# make test               the tests
# make lint               format, lint, types, layers
#
# Needs python3 (3.10 or newer) with venv, make and git. PYTHON and VENV choose another interpreter or folder.

PYTHON ?= python3
VENV ?= .venv
MESH ?= examples/chair.glb
OUT ?= demo_out

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m vae_qwen3vl demo "$(MESH)" -o "$(OUT)/$(basename $(notdir $(MESH)))"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without an NVIDIA GPU, PyTorch's CPU build comes first (0.2 GB; the default build brings 3 GB of CUDA). Where its
# index can't be reached, whatever build pip finds has to do.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),0)
	$(PIP) install --quiet --retries 1 --index-url $(TORCH_CPU_INDEX) torch==$(TORCH_VERSION) \
		|| $(PIP) install --quiet torch==$(TORCH_VERSION)
endif
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet -e '.[language$(if $(filter-out 0,$(GPU)),$(comma)gpu)]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet -e '.[dev$(if $(filter-out 0,$(GPU)),$(comma)gpu)]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

comma := ,
