# Two commands: `make demo` and `make test`. Both set up .venv first and need only Python 3.11, gcc and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint types tests slow docs bench audit packages lock clean

.venv/ready: requirements.lock pyproject.toml
	@echo "Setting up .venv: 225 packages from requirements.lock; pip says nothing for minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/ready
	$(BIN)/keras-committee train recipes/digits_wrn.py
	$(BIN)/keras-committee evaluate runs/digits_wrn
	$(BIN)/keras-committee report runs/digits_wrn
	$(BIN)/keras-committee export runs/digits_wrn

test: lint types tests slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/basedpyright --level error

# The layers and models are keras.ops only: the same tests hold them to it under JAX.
tests: .venv/ready
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests/layers tests/models tests/test_flops.py tests/test_schedules.py

# Processes that are killed, hang and go on; several hosts; a Ray cluster.
slow: .venv/ready
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m slow

# The guide, in build/site; a warning is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: .venv/ready
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# Asks the vulnerability service for what is known of the lock; --strict, since one that could not be asked about is no
# clean one. What is accepted, and why, stands in SECURITY.md.
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
