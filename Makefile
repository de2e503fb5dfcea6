# Two commands are all there is to know: `make demo` and `make test`.
# Both make the same .venv, able to run every command and every check.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-faults lint types imports docs docs-check bench clean

demo: $(STAMP)
	$(BIN)/timechat demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not faults"

test-faults: $(STAMP)
	$(BIN)/python -m pytest tests/faults

lint: $(STAMP)
	$(BIN)/ruff format --check src tests bench examples docs
	$(BIN)/ruff check src tests bench examples docs

types: $(STAMP)
	$(BIN)/basedpyright

imports: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python docs/help.py

docs-check: $(STAMP)
	$(BIN)/python docs/help.py --check

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python bench/train_speed.py

# pip, not uv: the upper bound on torch in pyproject.toml then finds the CPU build.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "TimeChat needs Python 3.11 to 3.13; name one with make PYTHON=python3.12"; exit 2; }
	@echo "creating $(VENV) and installing (1 to 3 minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
