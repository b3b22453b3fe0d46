# Everything a checkout needs, from python3, git and make alone. `make` prints the list below.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BROKER ?= embedded
SEED ?=
MINUTES ?= 10
STRICT ?=
SECONDS ?= 600
KEEP ?=
OPTIONS ?=
PYTHON := .venv/bin/python

# What says that .venv holds what the locks and pyproject.toml ask for.
RUN_READY := .venv/.run-ready
DEV_READY := .venv/.dev-ready

.PHONY: help run demo test faults faults-random fuzz check format docs quality lock audit bench-audit clean

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN_READY)  ## Run ingress, downloader and notifier in one process, on embedded parts
	@exec $(PYTHON) -m standalone

demo: $(RUN_READY)  ## Play fourteen conversions, from callback to kept file (BROKER=embedded or rabbitmq)
	@exec $(PYTHON) -m simulator.demo --broker $(BROKER)

test: check  ## Check, then run every test, two at a time; of the faults a fast selection
	@$(PYTHON) -m pytest --numprocesses=2 --dist=worksteal

faults: $(DEV_READY)  ## Inject every fault, and tell what was lost or doubled (about 20 minutes)
	@$(PYTHON) -m pytest tests/faults -m fault --every-fault --numprocesses=2 --dist=worksteal $(if $(SEED),--fault-seed=$(SEED))

faults-random: $(DEV_READY)  ## Inject random faults into real processes under load (SEED=… MINUTES=…)
	@PYTHONPATH=. $(PYTHON) -m tests.faults.random_walk --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: $(DEV_READY)  ## Fuzz the public edge and every parser of foreign bytes (SECONDS=600; KEEP=1 lets the corpus grow)
	@PYTHONPATH=. $(PYTHON) -m tests.fuzz --seconds $(SECONDS) $(if $(KEEP),--keep)

check: $(DEV_READY)  ## Formatting, lint, import rules and types; changes nothing
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/ruff check --quiet
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/mypy

format: $(DEV_READY)  ## Format the code and correct what can be corrected
	@.venv/bin/ruff check --quiet --fix-only
	@.venv/bin/ruff format --quiet

docs: $(DEV_READY)  ## Write what the documentation repeats from the code
	@PYTHONPATH=. $(PYTHON) docs/build.py

quality:  ## Install what measures how files sound (WAVEKEEP_QUALITY, WAVEKEEP_WAVEFORM)
	@deploy/bootstrap.sh quality

lock:  ## Choose the versions of all dependencies anew (network)
	@deploy/lock.sh

audit: $(DEV_READY)  ## Look for known weaknesses of what is locked (network; STRICT=1 fails where nothing can be looked up)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) deploy/audit.py $(if $(STRICT),--strict)

bench-audit: $(DEV_READY)  ## Measure `wavekeep audit` beside plain reading of the same files (OPTIONS=--json)
	@PYTHONPATH=. $(PYTHON) -m benchmarks.audit $(OPTIONS)

clean:  ## Delete .venv and caches; the data folder stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): requirements/run.txt pyproject.toml deploy/bootstrap.sh
	@deploy/bootstrap.sh run

$(DEV_READY): requirements/run.txt requirements/dev.txt pyproject.toml deploy/bootstrap.sh
	@deploy/bootstrap.sh dev
