# Thin verbs: each forwards to `python -m pipeline`, whose --help says more.
# Variables given on the command line reach the recipes through the environment, so any character in a path is safe.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
RUN_PIPELINE := $(VENV)/bin/python -m pipeline
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# $(call options,A B) -> --a "$A" --b "$B" for those that were given
lower = $(shell printf '%s' '$(1)' | tr 'A-Z_' 'a-z-')
options = $(foreach name,$(1),$(if $(strip $($(name))),--$(call lower,$(name)) "$$$(name)"))

.PHONY: help env demo data prune profile deploy app stage pretrain compare paper-table bench-step bench-loader bench-export bench-latency-budget test check format lock

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo "  Every option: $(RUN_PIPELINE) VERB --help"

env: $(READY) ## make the environment (.venv, from requirements.lock)

$(READY): requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "making the environment in $(VENV) (about 7 GB; minutes, depending on the network)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $(READY)

demo: $(READY) ## prune, compact, fine-tune, export, validate, report on the embedded default [RUN SEED OUT]
	@$(RUN_PIPELINE) demo $(call options,RUN SEED OUT)

data: $(READY) ## download a named data set, check and unpack it: DATASET=inat19 [DATA]
	@$(RUN_PIPELINE) data $(call options,DATASET DATA)

prune: $(READY) ## fine-tune while pruning [DATASET DATA MAX_BAD_SHARE SUBSET SPARSITY LATENCY_MS MODEL MODEL_PATH METHOD RELEASED DISTILL EPOCHS FINETUNE_EPOCHS DENSE_EPOCHS LR BATCH_SIZE TARGET SEED RUN FROM_SCRATCH]
	@$(RUN_PIPELINE) prune $(call options,DATASET DATA MAX_BAD_SHARE SUBSET SPARSITY LATENCY_MS MODEL MODEL_PATH METHOD EPOCHS FINETUNE_EPOCHS DENSE_EPOCHS LR BATCH_SIZE TARGET SEED RUN) $(if $(FROM_SCRATCH),--from-scratch) $(if $(RELEASED),--released) $(if $(DISTILL),--distill)

profile: $(READY) ## milliseconds of a block by its width on a device, for LATENCY_MS: TARGET=host|rpi4|rpi5|web [MODEL DEVICE FORMAT PRECISION]
	@$(RUN_PIPELINE) profile $(call options,TARGET MODEL DEVICE FORMAT PRECISION)

deploy: $(READY) ## export for TARGET and prove it there: TARGET=host|ios|android|rpi4|rpi5|web [DEVICE RUN BUDGET QUICK=1 REQUIRE=all]
	@$(RUN_PIPELINE) deploy $(call options,TARGET DEVICE RUN BUDGET REQUIRE) $(if $(QUICK),--quick)

app: $(READY) ## build the demo app, with the model that was deployed: TARGET=web (and serve it)|rpi4|rpi5 [RUN ADDRESS PORT]
	@$(RUN_PIPELINE) app $(call options,TARGET RUN ADDRESS PORT)

stage: $(READY) ## run one stage of a run alone: STAGE=compact [RUN TARGET BUDGET]
	@$(RUN_PIPELINE) stage "$$STAGE" $(call options,RUN TARGET BUDGET)

pretrain: $(READY) ## train the embedded model's weights: DATA=folder:PATH [MODEL INIT EPOCHS LR SEED OUT]
	@$(RUN_PIPELINE) pretrain $(call options,DATA MODEL INIT EPOCHS LR SEED OUT)

compare: $(READY) ## every method side by side: the table [DATASET DATA SUBSET MODEL SPARSITIES METHODS ONCE SEEDS EPOCHS JOBS ...]
	@$(RUN_PIPELINE) compare $(call options,DATASET DATA SUBSET MODEL SPARSITIES METHODS ONCE SEEDS EPOCHS FINETUNE_EPOCHS LR BATCH_SIZE JOBS OUT)

paper-table: $(READY) ## the published table, and what it takes to make it again [DRY_RUN=1]
	@$(RUN_PIPELINE) paper-table $(if $(DRY_RUN),--dry-run)

bench-step: $(READY) ## time and memory of a training step, plain and pruning [QUICK OUT]
	@$(RUN_PIPELINE) bench-step $(if $(QUICK),--quick) $(call options,OUT)

bench-loader: $(READY) ## images per second of our training loader and timm's [QUICK WORKERS OUT]
	@$(RUN_PIPELINE) bench-loader $(if $(QUICK),--quick) $(call options,WORKERS OUT)

bench-export: $(READY) ## our exports beside stock ones and other runtimes [QUICK OUT]
	@$(RUN_PIPELINE) bench-export $(if $(QUICK),--quick) $(call options,OUT)

bench-latency-budget: $(READY) ## milliseconds against parameters as DAP's budget [DATASET SUBSET MODEL SPARSITY SEEDS EPOCHS FINETUNE_EPOCHS QUICK OUT]
	@$(RUN_PIPELINE) bench-latency-budget $(call options,DATASET SUBSET MODEL SPARSITY SEEDS EPOCHS FINETUNE_EPOCHS OUT) $(if $(QUICK),--quick)

test: $(READY) ## run all tests
	@$(VENV)/bin/python -m pytest

check: $(READY) ## ruff, types, fast tests
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/python -m pytest -m "not slow"

format: $(READY) ## let ruff format the code
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

lock: $(READY) ## resolve requirements.in and requirements-bench.in (needs uv on the PATH)
	@uv pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 requirements.in -o requirements.lock
	@uv pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 -c requirements.lock requirements-bench.in -o requirements-bench.txt
