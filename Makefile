# Every target works from a fresh clone; it needs make and Python 3.11 or newer with its venv module.
# Options: PYTHON=python3.12 (which Python makes .venv), ARGS="-k name" (handed on to the tool).

PYTHON ?= python3
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Stamps: .made holds the path of this folder, the others say which extras are in.
MADE := $(VENV)/.made
RUN  := $(VENV)/.installed-run
TEST := $(VENV)/.installed-test
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test seeds check docs reliability bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)$$/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(RUN) ## install into .venv and run the demonstration
	$(BIN)/numaemu demo $(ARGS)

test: $(TEST) ## run the tests, two at a time
	$(BIN)/pytest -n 2 --max-worker-restart=0 -q $(ARGS)

seeds: $(TEST) ## run a hundred thousand seeds of machines whose parts die (ARGS="--seed 7" replays one)
	$(BIN)/python tools/run_seeds.py $(ARGS)

check: $(DEV) ## style, types and the rules of who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(TEST) ## write what docs/semantics.md and docs/views.md take from the code
	$(BIN)/python tools/profile_table.py
	$(BIN)/python tests/core/test_views_page.py

reliability: $(TEST) ## kill and stop every process at every step, and write docs/reliability.md
	$(BIN)/python tools/reliability_table.py

bench: $(RUN) ## run the benchmarks
	$(BIN)/numaemu bench $(ARGS)

clean: ## remove .venv and whatever the tools left behind
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that was copied along with the folder points at the old place: make it anew.
ifneq ($(file <$(MADE)),$(CURDIR))
.PHONY: $(MADE)
endif

$(MADE):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: '$(PYTHON)' was not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: numaemu needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1);" \
	       "name a newer one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments (no ensurepip);" \
	       "on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	rm -rf $(VENV)
	"$(PYTHON)" -m venv $(VENV)
	@printf '%s' '$(CURDIR)' > $@

$(RUN): $(MADE) pyproject.toml
	$(PIP) --editable .
	@touch $@

$(TEST): $(MADE) pyproject.toml
	$(PIP) --editable '.[test]'
	@touch $(RUN) $@

$(DEV): $(MADE) pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $(RUN) $(TEST) $@
