# Two commands do all the set-up: `make notebooks` and `make test`.
# Only Python >= 3.11 and a Python package index are needed; uv is used when it is there
# (unless only pip has been told about an index of yours). `make UV= notebooks` forces pip.

VENV    ?= .venv
PYTHON  ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
             && command -v $$p && break; done)
UV      ?= $(shell command -v uv 2>/dev/null)
PIP_ONLY := $(shell env | grep -q '^UV_' || \
              $(PYTHON) -m pip config list 2>/dev/null | grep -cE '(index-url|find-links)=')
ifneq ($(filter-out 0,$(PIP_ONLY)),)
UV :=
endif
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY   := $(VENV)/.microbudget-ready
RUN     := $(BIN)/python -m microbudget

.DEFAULT_GOAL := help
.PHONY: help setup assets notebooks test lab table refresh lock lint clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## the environment alone: .venv with the locked packages

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 on the PATH: install one, or run"\
	  "'make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'." >&2; exit 1; }
	@test ! -e "$(VENV)" -o -e "$(VENV)/.made-by-microbudget" || { echo "$(VENV) exists"\
	  "and was not made by this Makefile: use 'make VENV=other'." >&2; exit 1; }
	@mkdir -p "$(VENV)" && touch "$(VENV)/.made-by-microbudget"
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python "$(PYTHON)" "$(VENV)"
	$(UV) pip install --python "$(BIN)/python" -r requirements.lock
	$(UV) pip install --quiet --python "$(BIN)/python" --no-deps -e .
else
	"$(PYTHON)" -m venv "$(VENV)"
	@echo "Installing the locked packages (minutes, the first time) …"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile \
	  -r requirements.lock
	@# pip would compile on one core; some packages hold templates that don't compile
	@"$(BIN)/python" -m compileall -qq -j 0 "$(VENV)/lib" || true
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
endif
	@touch "$@"

assets: $(READY) ## fetch models and data, train what chapters start from, once
	@$(RUN) fetch

notebooks: assets ## run the whole course, offline, and print the table
	@$(RUN) run
	@$(RUN) table

test: assets ## the tests; TESTS="tests/llm tests/data" runs some of them
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lab: assets ## open JupyterLab on the course
	@$(BIN)/python -m jupyter lab notebooks

table: $(READY) ## the at-a-glance table of the last runs
	@$(RUN) table

refresh: assets ## execute the notebooks, keep outputs, ledger and README table
	@MICROBUDGET_LEDGER=data/ledger $(RUN) run --save
	@$(RUN) table --write

lint: $(READY) ## ruff over code and notebooks, and the layers of imports
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports --no-cache

lock: $(READY) ## resolve pyproject.toml into requirements.lock (needs uv)
	@test -n "$(UV)" || { echo "make lock needs uv" >&2; exit 1; }
	@$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --extra export \
	  --no-header --no-annotate --no-emit-package microbudget pyproject.toml \
	  | grep -vE '^(nvidia|cuda)-|^triton==' > requirements.lock.new
	@{ sed -n '/^#/p' requirements.lock; cat requirements.lock.new; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock && rm requirements.lock.new

clean: ## remove the environment and what was fetched or generated here
	@if [ -e "$(VENV)/.made-by-microbudget" ]; then rm -rf "$(VENV)"; fi
	@rm -rf data/cache data/runs data/handout .pytest_cache .ruff_cache .hypothesis
