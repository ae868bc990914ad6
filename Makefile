# Two commands do most: `make repro` builds everything from raw text to a registered model, `make test` runs the tests.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ready = $(patsubst %,$(VENV)/.ready-%,$(1))
# Settings of the project: no telemetry from any tool; the programs of .venv before others.
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro serve test coverage mutants ui deploy lint bench clean

help: ## show this list
	@echo "usage: make TARGET [profile=smoke|laptop|gpu-124m|gpu-1b]"
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(call ready,$(or $(extras),repro)) ## create .venv and install what `repro` needs, or extras="dev ..." of pyproject.toml

# Each marker says that an extra is complete (scripts/install.py); an extra marks those that it contains as well.
$(VENV)/.ready-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@command -v git >/dev/null || { echo "git is needed: install it and run the same command again" >&2; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "could not create $(VENV): on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@echo "installing pinned dependencies into $(VENV): $*"
	@$(BIN)/python -m scripts.install $(if $(installer),--installer $(installer)) $*

# Before a build: the profile, if one is given, and the check of the parameters.
ready_to_build = $(if $(profile),foundry profile "$(profile)" &&) foundry check

repro: $(call ready,repro) ## rebuild what changed: download ... export (dvc repro); profile=NAME switches first
	@$(ready_to_build)
	@dvc --wait-for-lock repro
	@python -m flows.remember

serve: $(call ready,repro) ## serve the champion: OpenAI API and page on loopback; Ctrl-C stops it (model=, port=, weights=)
	@exec foundry serve $(if $(model),"$(model)") $(if $(port),--port "$(port)") $(if $(weights),--weights "$(weights)")

.PHONY: chat align
chat: $(call ready,repro) ## a model that answers: chat data, fine-tuning, evaluation, export (dvc repro chat/dvc.yaml); then foundry chat
	@$(ready_to_build)
	@dvc --wait-for-lock repro chat/dvc.yaml
	@python -m flows.remember

align: $(call ready,repro) ## improve it by rewards: preferences, DPO, RL and their evaluation (dvc repro chat/align/dvc.yaml)
	@$(ready_to_build)
	@dvc --wait-for-lock repro chat/align/dvc.yaml
	@python -m flows.remember

test: $(call ready,dev) ## the test suite, in two processes
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# At least this many percent of the lines must be run by a test: in models and data 90, in utils and in all 85.
FLOORS := foundry/models/*:90 foundry/data/*:90 foundry/utils/*:85 *:85
coverage: $(call ready,dev) ## the tests, and the lines that none runs; fails under 90 % in models and data, 85 % in utils and all (tests=FOLDER)
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(tests)
	@set -f; failed=0; for floor in $(FLOORS); do \
		percent=$$(python -m coverage report --include="$${floor%:*}" --format=total --precision=1 --fail-under=0); \
		echo "$${floor%:*}: $$percent % (at least $${floor##*:} %)"; \
		python -m coverage report --include="$${floor%:*}" --fail-under="$${floor##*:}" >/dev/null || failed=1; \
	done; exit $$failed

mutants: $(call ready,dev) ## mutation testing: how often a test notices a small change (sample=200 seed=1 files="foundry/...")
	@python -m scripts.mutants $(if $(sample),--sample $(sample)) $(if $(seed),--seed $(seed)) $(files)

ui: $(call ready,ui) ## Prefect server, worker and MLflow on loopback; Ctrl-C stops them (prefect_port=, mlflow_port=, serve_port=, webhook=)
	@python -m flows.ui $(if $(prefect_port),--prefect-port $(prefect_port)) \
		$(if $(mlflow_port),--mlflow-port $(mlflow_port)) $(if $(serve_port),--serve-port $(serve_port)) \
		$(if $(webhook),--webhook "$(webhook)")

deploy: $(call ready,ui) ## register the flows of prefect.yaml with a server (webhook=URL is called for late and failed runs)
	@python -m flows.deploy $(if $(webhook),--webhook "$(webhook)")

lint: $(call ready,lint) ## ruff and the import rules
	@ruff check .
	@ruff format --check .
	@lint-imports --no-cache

.PHONY: docs
docs: $(call ready,docs) ## build the site of the documentation in site/; a dead link fails (port=8001 serves it on loopback)
	@NO_MKDOCS_2_WARNING=1 mkdocs build
	@if [ -n "$(port)" ]; then exec python -m http.server "$(port)" --bind 127.0.0.1 --directory site; fi

.PHONY: blocks
blocks: $(call ready,dev) ## run the blocks of the pages that the tests leave out, in a copy of this project with its models
	@FOUNDRY_BLOCKS="$(CURDIR)" python -m pytest -q -s -o timeout=0 tests/test_blocks.py

.PHONY: types
types: $(call ready,lint) ## mypy, strict, for the public interface and the commands (tool.mypy in pyproject.toml lists them)
	@mypy

.PHONY: chaos
chaos: $(call ready,dev) ## kill real builds at random moments for ten minutes, and compare every byte (minutes=60, seed=N)
	@FOUNDRY_CHAOS_MINUTES="$(or $(minutes),10)" FOUNDRY_CHAOS_SEED="$(seed)" \
		python -m pytest -q -s -o timeout=0 tests/test_chaos.py

.PHONY: soak
soak: $(call ready,dev) ## 32 clients with cancellations and malformed bodies for 20 minutes; nothing may grow (minutes=60, seed=N)
	@FOUNDRY_SOAK_MINUTES="$(or $(minutes),20)" FOUNDRY_SOAK_SEED="$(seed)" \
		python -m pytest -q -s -o timeout=0 tests/serving/test_soak.py

.PHONY: examples
examples: $(call ready,dev) ## every example at its full size, with what it asserts (minutes)
	@FOUNDRY_EXAMPLES=full python -m pytest -q -s --durations=0 tests/test_examples.py

bench: $(call ready,ui) ## the measured claims, with both sides (some minutes; run nothing else meanwhile)
	@python -m benchmarks.startup
	@python -m benchmarks.noop
	@python -m benchmarks.throughput
	@python -m benchmarks.data encode
	@python -m benchmarks.data loader
	@python -m benchmarks.tracking

.PHONY: gpu
# With the Python of .venv if there is one, else, or if PYTHON= is given, with that one and the packages that it has.
GPU_PYTHON = $(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(PYTHON)))
gpu: ## tests and measurements on an NVIDIA GPU, without any set-up (PYTHON=python3, only="tests train decode evaluate")
	@"$(GPU_PYTHON)" -m benchmarks.gpu $(if $(only),--only $(only))

.PHONY: reproducible remote push
reproducible: $(call ready,repro) ## build two clean clones in different environments and compare every byte (stages="...")
	@python -m scripts.reproducible $(stages)

remote: $(call ready,remote) ## share results: url=/mnt/team/foundry, or url=s3://BUCKET/foundry [endpoint=http://HOST:PORT]
	@test -n "$(url)" || { echo "url= is missing: make remote url=/mnt/team/foundry," \
		"or url=s3://BUCKET/foundry [endpoint=http://HOST:PORT]" >&2; exit 2; }
	@case "$(endpoint)|$(url)" in "|"*|*"|s3://"*) ;; \
		*) echo "endpoint= is for s3:// addresses, got url=$(url)" >&2; exit 2;; esac
	@dvc remote add --default --force store "$(url)"
	@if [ -n "$(endpoint)" ]; then dvc remote modify store endpointurl "$(endpoint)"; fi
	@echo "now: make push; a colleague: dvc pull dvc.yaml && dvc repro, or dvc repro --pull"

push: $(call ready,remote) ## send what was built, and DVC's run cache with its files, to the remote
	@python -m scripts.push

clean: ## remove .venv and built files; data, models, .foundry and the DVC cache stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
