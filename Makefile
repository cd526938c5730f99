# Sets up .venv first, with Python 3.13, 3.12 or 3.11, whichever is found first; PYTHON=path selects another.
BIN := .venv/bin
# By file, so that fixtures of a module are made once; pytest-xdist 3.8 ignores groups under pytest 9.2.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test check lint types fast tests jax full-matrix docs bench audit packages lock clean

install = python=$$(sh tools/find_python.sh "$(PYTHON)") && "$$python" tools/install_packages.py

# What `make demo` runs: the package and its extra `serving`.
.venv/ready-demo: requirements-demo.lock pyproject.toml
	@$(install) $<
	@touch $@

# The other extras and the tools of developers are added to it.
.venv/ready: requirements.lock .venv/ready-demo
	@$(install) $<
	@touch $@

demo: .venv/ready-demo
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

# Those without arguments; the others read a trained run or images.
bench: .venv/ready
	for script in $(filter-out $(addprefix benchmarks/,implicit_ensemble.py plain_cnn.py promises.py),$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Known vulnerabilities of the locked packages; accepted ones are listed in SECURITY.md.
audit: .venv/ready
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off

# The wheel in an empty environment with each extra alone: minutes and gigabytes for each.
packages: .venv/ready
	$(BIN)/python tests/packages.py $(EXTRAS)

# Both lock files, the small one with the versions of the other: hashes only, no index address, valid for each Python.
# backports-strenum 1.3 declares Python < 3.11; uv reads only lower bounds of requires-python, pip refuses it.
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --group setup --generate-hashes \
	--no-emit-index-url --no-header --quiet

lock: .venv/ready-demo
	echo "backports-strenum<1.3" | $(COMPILE) --extra all --extra dev --constraints - --output-file requirements.lock
	$(COMPILE) --extra serving --constraints requirements.lock --output-file requirements-demo.lock

clean:
	rm -rf .venv build dist *.egg-info
