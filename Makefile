# Everything a contributor runs. Each target makes .venv by itself: Python 3.11 or newer and make are all it needs.
#
#   make PYTHON=/path/to/python3.12 test    with a Python of your choice
#   make EXTRAS=dev,bench test              with more of pyproject.toml's extras (after `rm -rf .venv`, or touch pyproject.toml)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test check constraints clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
EXTRAS := dev
# Requirements to install before all others: with this torch in place, no other package brings in another one.
FIRST := torch==2.13.0

# The first Python that runs (a name on PATH may be a shim for a version that is not installed), is new enough and
# can make a virtual environment.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
FIND_PYTHON = for python in $(PYTHONS); do \
	  "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Lathe needs Python 3.11 or newer with its venv module; tried: $(PYTHONS)." >&2; \
	  for found in $(PYTHONS); do "$$found" --version >/dev/null 2>&1 && echo "  found $$found: $$("$$found" --version 2>&1)" >&2; done; \
	  echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# The extras that it needs, without those of the tests: make EXTRAS=data,hf,report quickstart
quickstart: $(STAMP)  ## the whole job in minutes: train small models, fit, measure, plan, train the best, report
	$(BIN)/lathe run quickstart --out build/quickstart

test: export OMP_NUM_THREADS := 2
test: export OPENBLAS_NUM_THREADS := 2
test: export MKL_NUM_THREADS := 2
test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest

# Pyright's own script ships in its package and runs on the Node of its extra: nothing is fetched. The variables keep
# to that build, and to silence about newer ones.
check: export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
check: export PYRIGHT_PYTHON_FORCE_VERSION :=
check: $(STAMP)  ## lint, check the formatting, the types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

# pip leaves a half-made environment behind when it is stopped, and an upgraded Python a broken one: both are remade.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(FIND_PYTHON); \
	  echo "Making $(VENV) with $$("$$python" --version) (about a minute)"; \
	  "$$python" -m venv --clear $(VENV); \
	}
	$(if $(FIRST),$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(FIRST))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

constraints: FRESH := build/constraints
constraints:  ## resolve every extra afresh, beside the torch already pinned, and rewrite constraints.txt
	@$(FIND_PYTHON); "$$python" -m venv --clear $(FRESH)
	grep '^torch==' constraints.txt > $(FRESH)/torch.txt
	grep '^#' constraints.txt > $(FRESH)/header.txt
	$(FRESH)/bin/python -m pip install --quiet --upgrade pip
	$(FRESH)/bin/python -m pip install --quiet -r $(FRESH)/torch.txt
	$(FRESH)/bin/python -m pip install --quiet -c $(FRESH)/torch.txt -e ".[all,bench,dev]"
	$(FRESH)/bin/python -m pip check
	$(FRESH)/bin/python -m pip freeze --exclude-editable > $(FRESH)/freeze.txt
	sed 's/+[a-z0-9.]*$$//' $(FRESH)/freeze.txt | LC_ALL=C sort -f | cat $(FRESH)/header.txt - > $(FRESH)/constraints.txt
	mv $(FRESH)/constraints.txt constraints.txt
	rm -rf $(FRESH)

clean:  ## remove what these targets made, .venv apart
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
