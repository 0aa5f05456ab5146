# `make demo` and `make test` do all the set-up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo deploy slurm-demo test test-local test-slurm test-containers fuzz test-slow test-slow-machine test-newest test-prefect test-trainers test-trackers bench check format docs docs-site docs-tools megatron-names clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed  ## a virtual environment with the pinned dependencies

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "autoexp needs Python 3.11 or later: make PYTHON=/path/to/python3.12 setup"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: setup  ## train a small language model and branch two cooldowns, in under a minute
	$(BIN)/autoexp run demo

deploy: setup  ## a Prefect server (if none answers), the work pool, deployments and automations
	$(BIN)/autoexp deploy

test: test-local test-slurm  ## every test that can run here

# Files side by side, one more than there are cores (see tests/conftest.py): first those of few long
# tests, which would else begin last (xdist puts files of many tests first) and be waited for.
test-local: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/flows tests/containers tests/core

# A cluster is one: its tests go one by one.
test-slurm: setup
	$(BIN)/python -m pytest tests/slurm

test-slow-machine: setup  ## the same on half of one core: one to itself, shared with a busy loop
	while :; do :; done & trap "kill $$!" EXIT; taskset -pc 0 $$! && taskset -c 0 .ci/run

test-containers: setup  ## tests in a real image, of variables, binds and signals; Apptainer is installed where it can be
	tests/containers/apptainer.sh install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/containers

FUZZ_S ?= 600
FUZZ_SEED ?= $(shell date +%s)
FUZZ = FUZZ_S=$$(( $(FUZZ_S) * $(1) / 8 )) AUTOEXP_TEST_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -q -s
fuzz: setup  ## random kills, raising children, log bytes and rules at a session, retention, months, texts at what makes them safe, for FUZZ_S seconds (600)
	$(call FUZZ,1) tests/core/house/test_promises.py -k any_text
	$(call FUZZ,4) tests/core/monitor/test_invariants.py -k whatever_happens
	$(call FUZZ,2) tests/core/retention/test_plays.py
	$(call FUZZ,1) tests/core/retention/test_month.py -m slow

TRAINERS := .venv-trainers
test-trainers: setup $(TRAINERS)/.installed  ## real trainers on this machine's CPU; clones by AUTOEXP_TEST_MEGATRON and others
	AUTOEXP_TEST_TORCH_PYTHON=$${AUTOEXP_TEST_TORCH_PYTHON:-$(CURDIR)/$(TRAINERS)/bin/python} \
	  $(BIN)/python -m pytest -n0 -rs -m 'slow or not slow' tests/trainers tests/flows/test_huggingface.py tests/flows/test_trainer_cycles.py tests/flows/test_elastic.py

$(TRAINERS)/.installed: tests/trainers/requirements.txt
	if [ -z "$$AUTOEXP_TEST_TORCH_PYTHON" ]; then $(PYTHON) -m venv $(TRAINERS) && \
	  $(TRAINERS)/bin/pip install --quiet -r tests/trainers/requirements.txt; \
	  else mkdir -p $(TRAINERS); fi
	@touch $@

TRACKERS := .venv-trackers
test-trackers: $(TRACKERS)/.installed  ## an MLflow server on this machine, W&B's offline mode, TensorBoard's own reader; a session on the cluster, where one answers
	$(TRACKERS)/bin/python -m pytest -n0 -rs tests/trackers tests/slurm/test_tracking.py

$(TRACKERS)/.installed: tests/trackers/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(TRACKERS)
	$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check 'hatchling>=1.27' editables setuptools
	$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]' -r tests/trackers/requirements.txt
	@touch $@

test-slow: setup  ## tests that take minutes each on a SLURM cluster: how jobs end, long sessions
	$(BIN)/python -m pytest -m slow

NEWEST := .venv/newest
NEWEST_TESTS ?= tests/core tests/flows
test-newest:  ## tests without a cluster, with the newest packages that pyproject.toml takes (NEWEST_TESTS: some of them)
	[ -x $(NEWEST)/bin/python ] || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check 'hatchling>=1.27' editables setuptools
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --no-build-isolation -e '.[dev,parquet,tensorboard]'
	$(NEWEST)/bin/pip list --disable-pip-version-check | grep -iE '^(prefect|fastapi|pydantic|typer|rich|hydra-core) '
	home=$$(mktemp -d) && PREFECT_HOME=$$home $(NEWEST)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(NEWEST_TESTS); \
	  code=$$?; rm -rf "$$home"; exit $$code

PREFECT ?= 3.8.0
OF_PREFECT := .venv/prefect
PREFECT_TESTS ?= tests/flows/engine tests/flows/publishing tests/flows/deployment
test-prefect:  ## what rests on Prefect, with another version of it: PREFECT=3.8.0, the oldest that pyproject.toml takes (PREFECT_TESTS)
	[ -x $(OF_PREFECT)/bin/python ] || $(PYTHON) -m venv $(OF_PREFECT)
	$(OF_PREFECT)/bin/pip install --quiet --disable-pip-version-check 'hatchling>=1.27' editables setuptools
	$(OF_PREFECT)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]' 'prefect==$(PREFECT)'
	$(OF_PREFECT)/bin/pip list --disable-pip-version-check | grep -i '^prefect '
	home=$$(mktemp -d) && PREFECT_HOME=$$home $(OF_PREFECT)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PREFECT_TESTS); \
	  code=$$?; rm -rf "$$home"; exit $$code

bench: setup  ## measure what the monitor costs, and write bench/results/ (below ten minutes, on a quiet machine)
	$(BIN)/python -m bench

check: setup  ## format, lint, the layers of the rooms, and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: setup  ## mend what `make check` says about format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## write the reference in docs/rules.md, and the schemas of outputs, from the models
	$(BIN)/python -m autoexp.rules.reference docs/rules.md
	$(BIN)/python -m autoexp.schemas.outputs

DOCS := .venv/docs
docs-site: setup docs-tools  ## the pages as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

docs-tools: $(DOCS)/.installed

$(DOCS)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

MEGATRON ?= ../Megatron-LM
MEGATRON_RELEASES ?= core_v0.12.3 core_v0.13.1 core_v0.14.0 core_v0.15.3 core_v0.16.1 core_v0.17.1 core_v0.18.2 core_v0.19.0
megatron-names: setup  ## write the names of Megatron-LM's arguments from the releases in a clone of it, MEGATRON
	$(BIN)/python -m autoexp.backends.megatron.release $(MEGATRON) $(MEGATRON_RELEASES)

clean:  ## remove the virtual environment and the caches; sessions stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

container ?= none
IMAGE ?= /tmp/autoexp-train.sif
# What the demo needs in an image: autoexp's own folder, and where Python finds it.
IN_IMAGE = container=$(container) container.image=$(IMAGE) container.gpus=none \
	  "container.binds=[$(CURDIR)]" container.variables.PYTHONPATH=$(CURDIR)
slurm-demo: setup  ## the same on a real SLURM cluster of three nodes, brought up on this machine; `container=apptainer` in an image
	tests/slurm/cluster.sh up
	[ $(container) = none ] || tests/containers/apptainer.sh install
	[ $(container) = none ] || [ -e $(IMAGE) ] || tests/containers/apptainer.sh image $(IMAGE)
	$(BIN)/autoexp run demo slurm=local_cluster $(if $(filter-out none,$(container)),$(IN_IMAGE))
