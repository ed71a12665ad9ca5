# Every target sets itself up: python3 and make are enough. PYTHON=... picks an interpreter (3.11 to 3.13).

VENV := .venv
VENV_AOT := .venv-aot
VENV_PEERS := .venv-peers
BIN := $(VENV)/bin
CANDIDATES := python3.13 python3.12 python3.11 \
  $(shell ls -d $(HOME)/.pyenv/versions/3.1[123]*/bin/python3 2>/dev/null | sort -Vr) python3
# The newest Python that really runs: a name may be there (a pyenv shim) and start nothing.
NEWEST = $(shell for p in $(CANDIDATES); do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && \
  $$p -c 'import sys; print(sys.version_info[1], sys.executable)'; done | sort -rn | head -n 1 | cut -d ' ' -f 2)
PYTHON ?= $(NEWEST)
RUNS := runs

.PHONY: venv venv-aot venv-peers quickstart test test-slow soak test-gpu test-aot test-peers lint docs benchmark compare tensorboard clean

venv: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 was found: install one, or give PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

quickstart: venv
	$(BIN)/python experiments/train.py --config=configs/quickstart.py --workdir=$(RUNS)/quickstart
	$(BIN)/python experiments/evaluate.py --config=configs/quickstart.py --workdir=$(RUNS)/quickstart
	@echo "The curves: $(BIN)/tensorboard --logdir=$(RUNS)   then open http://localhost:6006"

test: venv
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: venv
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

# An hour of kills, damaged files and random configurations; docs/reliability.md has what it found.
soak: venv
	$(BIN)/python -m pytest -m soak --durations=0 -rA

test-gpu: venv
	JAX_PLATFORMS=cuda $(BIN)/python -m pytest -m gpu

# Compilers for TPU and NVIDIA, 2.3 GB; no accelerator needed. Of CUDA only what compiles: plugin, ptxas, libdevice.
venv-aot: $(VENV_AOT)/.installed

$(VENV_AOT)/.installed: setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 was found: install one, or give PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV_AOT)
	$(VENV_AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,aot]'
	jax=$$($(VENV_AOT)/bin/python -c 'import jax; print(jax.__version__)') && \
	  $(VENV_AOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax 'nvidia-cuda-nvcc-cu12==12.9.*'
	touch $@

test-aot: venv-aot
	$(VENV_AOT)/bin/python -m pytest -m aot

# With torch and transformers, on the CPU: logits, gradients and expert choices of theirs against ours.
venv-peers: $(VENV_PEERS)/.installed

$(VENV_PEERS)/.installed: setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 was found: install one, or give PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV_PEERS)
	$(VENV_PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,peers]'
	touch $@

test-peers: venv-peers
	$(VENV_PEERS)/bin/python -m pytest -m peers

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy moe_jax

# docs/routers.md, from the registry of routers; a test holds the file to it.
docs: venv
	$(BIN)/python -m moe_jax.documentation.routers > docs/routers.md.new && mv docs/routers.md.new docs/routers.md

# Trains a dense model and its Switch twin of equal FLOPs a token, then prints steps and time to the dense model's loss.
compare: venv
	for run in dense_small switch_small; do \
	  $(BIN)/python experiments/train.py --config=configs/$$run.py --workdir=$(RUNS)/$$run || exit $$?; done
	$(BIN)/python experiments/compare.py --runs=$(RUNS)/dense_small,$(RUNS)/switch_small --workdir=$(RUNS)/compare

benchmark: venv
	$(BIN)/python experiments/benchmark.py --suite=layer --workdir=$(RUNS)/benchmark
	XLA_FLAGS=--xla_force_host_platform_device_count=8 \
	  $(BIN)/python experiments/benchmark.py --suite=parallel --workdir=$(RUNS)/benchmark

tensorboard: venv
	$(BIN)/tensorboard --logdir=$(RUNS)

clean:
	rm -rf $(VENV) $(VENV_AOT) $(VENV_PEERS) *.egg-info
