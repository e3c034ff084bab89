# make train: the main job in a minute.  make test: everything that must hold.  Both do their own set-up.
PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements.lock

.PHONY: train test soak check setup clean

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

.venv/.ready$(EXTRA): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"error: Python {v[0]}.{v[1]}: \
	$(PYTHON); Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "setting up .venv (a few minutes the first time, about 2 GB)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c $(LOCK) \
		-e '.$(if $(EXTRA),[$(EXTRA)])'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
