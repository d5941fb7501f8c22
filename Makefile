# `make test` and `make demo` do all of the set-up first, below .venv and build, and can be repeated.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Named beside the package, so that pip chooses this build of it first and its dependencies after.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help setup test lint demo clean

help:
	@echo "make demo                      personalize for 90 seconds on a sample user, and show the result"
	@echo "make demo RECORDINGS=folder    the same with your own recordings"
	@echo "make test                      the whole test suite"
	@echo "make lint                      ruff and mypy"
	@echo "make setup                     only install, into $(VENV); PYTHON=python3.12 chooses a Python"
	@echo "make clean                     remove what set-up and demo made"

setup: $(VENV)/ready

$(VENV)/ready: constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "This needs Python 3.10 to 3.13, and $(PYTHON) is none of them; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV); the first time it takes minutes, most of them for torch ..."
	@$(INSTALL) '$(TORCH)' --editable '.[phone,train,live,dev]'
	@$(INSTALL) --editable '.[bench]' 2> /dev/null || { $(INSTALL) pystoi && \
	  echo "PESQ is left out: its package is built with a C compiler, and that failed. Everything else is there."; }
	@touch $@

test: setup
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m mypy

demo: setup
	$(RUN) examples/demo.py --out build/demo $(if $(RECORDINGS),--recordings "$(RECORDINGS)")

clean:
	rm -rf $(VENV) pse_sdk.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis build/demo build/sample-user
