# `make demo`, `make check` and `make test` set up .venv first; they need Python 3.11, gcc and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test check lint types fast tests jax full-matrix docs bench audit packages lock clean

.venv/ready: requirements.lock pyproject.toml
	@echo "Installing the packages of requirements.lock into .venv; this downloads about 1 GB and takes minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/ready
	$(BIN)/keras-committee train recipes/digits_wrn.py
	$(BIN)/keras-committee evaluate runs/digits_wrn
	$(BIN)/keras-committee report runs/digits_wrn
	$(BIN)/keras-committee export runs/digits_wrn

# Everything: at most 20 minutes on two idle cores. The type checker runs beside the tests, which leave cores idle.
test: lint
	$(MAKE) -j 2 types tests
	$(MAKE) jax

# Before each commit: at most 5 minutes.
check: lint
	$(MAKE) -j 2 types fast

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/ready
	$(BIN)/basedpyright --level error

fast: .venv/ready
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow"

tests: .venv/ready
	KERAS_BACKEND=tensorflow $(PYTEST)

# The contracts of layers and models hold under JAX, too.
jax: .venv/ready
	KERAS_BACKEND=jax $(PYTEST) -m jax tests/layers tests/models tests/stacked

# Training stopped at every step and resumed, for every recipe option: about half an hour.
full-matrix: .venv/ready
	KERAS_BACKEND=tensorflow $(PYTEST) -m full_matrix tests/training

# The documentation site in build/site; a warning is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: .venv/ready
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# Known vulnerabilities of the locked packages; accepted ones are listed in SECURITY.md.
audit: .venv/ready
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off

# The wheel in an empty environment with each extra alone: minutes and gigabytes for each.
packages: .venv/ready
	$(BIN)/python tests/packages.py $(EXTRAS)

# Written by uv; hashes only, no index address.
lock:
	uv pip compile pyproject.toml --extra all --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --output-file requirements.lock

clean:
	rm -rf .venv build dist *.egg-info
