# `make demo` and `make lab` are all a reader needs. Everything runs in .venv, which install.py makes from the tested set in constraints.txt.
#   make PYTHON=python3.12 ...   another Python (3.11 to 3.14)
#   make TORCH=cpu ...           PyTorch's CPU build; pypi: what pip takes by itself; auto: cpu where no GPU is, if its index can be reached
#   make demo ARGS='--tokens 64'  options of the command behind demo, chat, lab, unit, test-browser, bench, matrix or mutants
PYTHON ?=
TORCH ?= auto
ARGS :=
RUN := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help install demo chat lab test lint unit nb test-browser colab bench matrix mutants notebooks clean
# A folder that was moved or copied never runs the code of the old one: the path is relative, and stands before what pip wrote.
$(shell for site in .venv/lib/python*/site-packages; do test -d "$$site" && echo ../../../.. > "$$site/0-workbook.pth"; done)

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install:  ## the environment; the others do it first
	@command -v $(or $(PYTHON),python3) >/dev/null || { echo "There is no $(or $(PYTHON),python3) here; another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(or $(PYTHON),python3) install.py --torch $(TORCH) $(if $(PYTHON),,--keep)

demo: install  ## a real model answers twice, then the headline on the embedded models, in two minutes
	@echo "Loading torch and the models, some seconds ..."
	@$(RUN) -m speclib demo $(ARGS)

chat: install  ## ask a real model your own questions
	@$(RUN) -m speclib chat $(ARGS)

lab: install  ## JupyterLab at the first notebook
	$(RUN) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

test: install  ## everything that CI checks; each part runs, whatever the others say
	@failed=; for part in lint unit nb; do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

lint: install  ## style
	$(RUN) -m ruff check install.py speclib tests notebooks/*.py notebooks/images notebooks/lab data/vectors/adapters
	$(RUN) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache
	$(RUN) -m pytest -q -s -p no:cacheprovider tests/test_budgets.py

unit: install  ## unit tests, one thread each
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 tests $(ARGS)

nb: install  ## every notebook, strictly against its committed outputs
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q --nbval --nbval-sanitize-with notebooks/sanitize.cfg -n 2 --dist loadscope notebooks/*.ipynb

test-browser: install  ## every notebook in JupyterLab and Chromium (apt install chromium), each slider moved, light and dark: an hour
	$(RUN) -m pytest -q -m "slow or not slow" tests/test_browser.py $(ARGS)

colab:  ## every notebook with Colab's versions, in .colab, an environment of its own: GBs to fetch
	$(or $(PYTHON),python3) -m venv .colab
	.colab/bin/python -m pip install -q -r tests/colab.txt -e . $(ARGS)
	OMP_NUM_THREADS=1 .colab/bin/python -m pytest -q --nbval --nbval-sanitize-with notebooks/sanitize.cfg -n 2 --dist loadscope notebooks/*.ipynb

bench: install  ## the table of the README, measured on this machine
	$(RUN) -m speclib bench pair $(ARGS)

matrix: install  ## lowest, tested and newest versions, each in an environment of its own: an hour, and GBs to fetch
	$(RUN) tests/matrix.py $(ARGS)

mutants: install  ## break rules and loop on purpose; the tests must notice each time
	$(RUN) tests/mutants.py $(ARGS)

notebooks: install  ## headers, outputs and solutions of all notebooks again
	$(RUN) notebooks/build.py headers
	$(RUN) notebooks/build.py run
	$(RUN) notebooks/build.py solutions

clean:  ## remove the environments
	rm -rf .venv .colab
