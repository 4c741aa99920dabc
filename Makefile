# Every target sets up .venv by itself, and again only when pyproject.toml or constraints.txt changed.
# Choose the Python with `make PYTHON=python3.12 demo`.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\): .*##/make \1\t/p' Makefile | expand -t 16

demo: $(READY)  ## see what the library does, in about a minute
	@$(BIN)/tied demo

test: $(READY)  ## the tests, without the slow ones
	@$(PYTEST) -m "not slow"

test-all: $(READY)  ## all tests
	@$(PYTEST)

lint: $(READY)  ## ruff (rules and format) and pyright
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright

bench: $(READY)  ## every script of benchmarks/, results to benchmarks/results/
	@for script in benchmarks/*.py; do \
	  name=$$(basename "$$script" .py); \
	  echo "== $$name"; \
	  OMP_NUM_THREADS=1 $(BIN)/python "$$script" --json "benchmarks/results/$$name.json" || exit 1; \
	done

clean:          ## remove .venv and everything that was built
	@rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tied needs Python 3.10 or newer")'
	@echo "setting up .venv (once; torch is large) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
