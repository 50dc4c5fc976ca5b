# Needs only make, Python 3.11 or newer and a package registry; everything else goes into .venv.
# A .venv keeps its Python; for another: make clean, then make PYTHON=python3.12 TARGET.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help demo test test-slow lint format clean

help:  ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed  ## train, measure and report on drawn shapes
	$(RUN) main.py --config=configs/quickstart.py

test: .venv/.installed  ## run the quick tests
	$(RUN) -m pytest -n 2 --dist loadfile

test-slow: .venv/.installed  ## run the slow tests, and those of what XLA makes of programs
	$(RUN) -m pytest -m 'slow or xla' -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed  ## check style and format
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

format: .venv/.installed  ## mend style and format
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv without a working pip was left half made, or made by another tool: venv adds what it lacks.
.venv/.installed: pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3 $(MAKECMDGOALS)' >&2; \
	    exit 1; }; \
	  echo 'Creating .venv'; \
	  $(PYTHON) -m venv .venv; }
	@echo 'Installing rpn_jax and its pinned packages into .venv; the first time takes minutes'
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
