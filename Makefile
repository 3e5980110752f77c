# `make demo` and `make lab` are all a reader needs. Everything runs in .venv, made from the tested set in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo lab test lint unit nb bench mutants notebooks clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "The tested set needs Python 3.11 or newer with venv (Debian: apt install python3-venv). Another one: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

demo: .venv/.installed  ## the headline on the embedded models, in a minute
	$(BIN)/python -m speclib demo

lab: .venv/.installed  ## JupyterLab at the first notebook
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb

test: .venv/.installed  ## everything that CI checks; each part runs, whatever the others say
	@failed=; for part in lint unit nb; do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

lint: .venv/.installed  ## style
	$(BIN)/ruff check speclib tests notebooks/*.py notebooks/lab

unit: .venv/.installed  ## unit tests, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests

nb: .venv/.installed  ## every notebook, strictly against its committed outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbval --nbval-sanitize-with notebooks/sanitize.cfg -n 2 --dist loadscope notebooks/*.ipynb

bench: .venv/.installed  ## the table of the README, measured on this machine
	$(BIN)/python -m speclib bench

mutants: .venv/.installed  ## break rules and loop on purpose; the tests must notice each time
	$(BIN)/python tests/mutants.py

notebooks: .venv/.installed  ## headers, outputs and solutions of all notebooks again
	$(BIN)/python notebooks/build.py headers
	$(BIN)/python notebooks/build.py run
	$(BIN)/python notebooks/build.py solutions

clean:  ## remove the environment
	rm -rf .venv
