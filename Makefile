# make setup | demo | test | lint | bench        (PYTHON=python3.12 make setup for another interpreter)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: setup demo test lint bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# The stamp makes a second call do nothing, without network; it is newer than what it was made from.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python >= 3.11 needed, $(PYTHON) is older; set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/python harness/run.py suite=all preset=demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .

bench: setup
	@for subject in bench/*.py; do echo "== $$subject"; $(BIN)/python $$subject || exit 1; done

clean:
	rm -rf runs
