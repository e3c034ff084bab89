# make train: the main job in a minute.  make test: everything that must hold.  Both do their own set-up.
PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements.lock

.PHONY: train test soak check setup transformers clean moved

train: setup
	$(BIN)/python scripts/train.py --dataset digits $(if $(wildcard runs/digits/config.json),--resume)

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The long faults, and more of training in several processes.
soak: setup
	$(BIN)/python -m pytest -m soak

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# EXTRA=cuda or EXTRA=tpu adds JAX's own wheels for that platform, at the locked version of JAX.
setup: .venv/.ready$(EXTRA)

# Its files name its folder: an environment that was moved is made anew, from nothing.
moved = $(if $(wildcard $(1)/.ready*),$(shell grep -qF " $(realpath $(1))" $(1)/pyvenv.cfg || echo moved))

.venv/.ready$(EXTRA): pyproject.toml $(LOCK) $(call moved,.venv)
	$(call environment,-r $(LOCK),$(if $(EXTRA),[$(EXTRA)]))

# Models that others wrote in PyTorch and in Flax, in an environment of their own: transformers 4 is the last with both.
transformers: .venv-transformers/.ready
	HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu .venv-transformers/bin/python -m pytest tests/transformers/check_families.py

.venv-transformers/.ready: pyproject.toml $(LOCK) requirements-transformers.lock $(call moved,.venv-transformers)
	$(call environment,-r $(LOCK) -r requirements-transformers.lock)

# The environment of a target: $(1) is what pip installs in it, $(2) the project's extras.
define environment
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"error: Python {v[0]}.{v[1]}: \
	$(PYTHON); Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "setting up $(@D) (a few minutes the first time, about 2 GB)"
	$(PYTHON) -m venv $(if $(call moved,$(@D)),--clear) $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(1)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -c $(LOCK) -e '.$(2)'
	@touch $@
endef

clean:
	rm -rf .venv .venv-transformers .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
