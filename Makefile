# Everything a newcomer needs: `make run` and `make test` do all their own set-up.
# PYTHON=/path/to/python chooses an interpreter; otherwise any Python 3.11-3.13 on the PATH is taken.
# torch comes from wherever pip is configured to look: its CPU build where one is offered, else the registry's own.

.DEFAULT_GOAL := help
.PHONY: help run test check fix bench faults fuzz docs test-gpu

BIN := .venv/bin
STAMP := .venv/.installed
USUAL := not gpu and not slow and not network
# two at a time, a core each: torch's own threads would only get in each other's way
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.11 python

help:
	@echo "make run       quantize the bundled model and talk to it (in a terminal: in the app)"
	@echo "make test      run the tests that need no GPU, no network and little time"
	@echo "make check     formatting, lint, types, import directions, then the tests"
	@echo "make fix       format, and mend what the linter can"
	@echo "make faults    break runs on purpose: how many faults were tried, how many survived"
	@echo "make fuzz      try 200,000 damaged inputs on everything that is parsed"
	@echo "make bench     measure this machine"
	@echo "make docs      build the documentation into build/docs; a broken link fails"
	@echo "make test-gpu  run the tests that need a GPU"

run: $(STAMP)
	@$(BIN)/awq-tui demo

test: $(STAMP)
	$(PYTEST) -m "$(USUAL)"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(PYTEST) -m "$(USUAL)"

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

faults: $(STAMP)
	$(BIN)/python -m tests.faults

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.harness

test-gpu: $(STAMP)
	$(BIN)/pytest -m gpu

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what awq-tui needs into .venv (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(BIN)/python:
	@for python in $(CANDIDATES); do \
		if command -v "$$python" >/dev/null 2>&1 && "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
			"$$python" -m venv .venv && exit 0; \
			echo "$$python cannot make a virtual environment; install its venv package (Debian: python3-venv)." >&2; \
			rm -rf .venv; exit 1; \
		fi; \
	done; \
	echo "awq-tui needs Python 3.11, 3.12 or 3.13, and none is on the PATH; install one, or run make PYTHON=/path/to/it." >&2; \
	exit 1
