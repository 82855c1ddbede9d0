# Thin verbs: each is a command of `python -m pipeline`, which is given NAME=VALUE as it stood on make's command line.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Unexpanded and quoted, so that any character may be in a value; what the environment holds is not looked at.
quoted = '$(subst ','\'',$(1))'
named = $(filter-out PYTHON,$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
given = $(foreach name,$(sort $(named)),$(call quoted,$(name)=$(value $(name))))

# Two processes share the test files, in order: much of a test's time is waiting, and what a file needs is made once.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

VERBS := demo data shards prune profile deploy bench app hub stage pretrain compare paper-table models \
	bench-step bench-probes profile-train bench-loader bench-export bench-ops bench-batch bench-latency-budget \
	bench-frontier scale-estimate env-size
.PHONY: help env $(VERBS) test check format lock

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' Makefile
	@echo "  Options are given as NAME=VALUE; what VERB takes: $(VENV)/bin/python -m pipeline VERB --help"

env: $(READY) ## make the environment (.venv, from requirements.lock)

# A driver's device, or (Linux on Windows) its program. Without one the rest of torch's CUDA libraries stay away.
NVIDIA := $(or $(wildcard /dev/nvidiactl),$(shell command -v nvidia-smi))

$(READY): requirements.lock requirements-cuda.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "making the environment in $(VENV) (about $(if $(NVIDIA),7,6) GB; minutes, depending on the network)"
	@"$(PYTHON)" -m venv $(VENV)
	@for lock in requirements.lock $(if $(NVIDIA),requirements-cuda.lock); do \
		$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes \
			-r $$lock || exit; done
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true # all cores; some packages bring templates
	@touch $(READY)

$(VERBS): $(READY)
	@$(VENV)/bin/python -m pipeline $@ $(given)

demo: ## prune, compact, fine-tune, export, validate, report on the embedded default
data: ## download a named data set, check and unpack it: DATASET=inat19
shards: ## a data set of files as tars, for DATASET=wds:shards: DATASET=folder:PATH OUT=shards
prune: ## fine-tune while pruning: DATASET=folder:PATH SPARSITY=0.75
profile: ## milliseconds of a block by its width on a device, for LATENCY_MS: TARGET=host
deploy: ## export and prove it on a device: TARGET=host|mac|ios|android|rpi4|rpi5|web
bench: ## one table of a run, every format and precision measured: RUN=demo TARGET=host
app: ## build the demo app with the model that was deployed: TARGET=web (and serve it)|android|ios|rpi4|rpi5
hub: ## the small model as a folder that timm loads, with a card: RUN=demo (nothing is uploaded)
stage: ## run one stage of a run alone: STAGE=compact
pretrain: ## train the embedded model's weights: DATA=folder:PATH
compare: ## every method side by side: the table
paper-table: ## the published table, and what it takes to make it again
models: ## which of timm's ViTs can be pruned, and why not the others
env-size: ## what the environment is made of: megabytes of every package, and what needs it
bench-step: ## time and memory of a training step, plain and pruning
bench-probes: ## what the probes hold, for 10, 251 and 1,010 classes
profile-train: ## the ten operations of a training step that take longest
scale-estimate: ## time and cost of whole runs on 1, 8 and 64 GPUs, from steps measured on one
bench-loader: ## images per second of our training loader and timm's
bench-export: ## our exports beside stock ones and other runtimes
bench-ops: ## what each kind of operation takes, dense and pruned
bench-batch: ## what the form for GPU delegates costs on the CPU
bench-latency-budget: ## milliseconds against parameters as DAP's budget
bench-frontier: ## accuracy over milliseconds of what was compared: RESULTS=docs/results/compare-...json

test: $(READY) ## run all tests
	@$(PYTEST)

check: $(READY) ## ruff, types, fast tests
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PYTEST) -m "not slow"

format: $(READY) ## let ruff format the code
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

# Named by what is installed, and loaded by nothing here. Of torch's own, those that it is imported without: a GPU wants
# them, and requirements-cuda.lock has them. Of the converters', what is for language models and their hubs.
LEFT_OUT := triton nvidia-cusolver nvidia-nvtx cuda-bindings cuda-pathfinder \
	pytorch-tokenizers sentencepiece tiktoken kagglehub kagglesdk \
	hydra-core omegaconf antlr4-python3-runtime
UV := uv pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11

lock: $(READY) ## resolve requirements*.in (needs uv on the PATH)
	@$(UV) $(addprefix --no-emit-package=,$(LEFT_OUT)) requirements.in -o requirements.lock
	@$(UV) -c requirements.lock requirements-cuda.in -o requirements-cuda.lock
	@$(UV) -c requirements.lock requirements-bench.in -o requirements-bench.txt
