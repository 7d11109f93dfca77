# Two commands matter: `make serve` and `make test`. Each installs what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Without a C++ compiler the service steps eagerly: slower, and it says so at every start.
PREPARE = echo "==> Compiling for this machine's processor" && $(BIN)/world-model prepare || true
# Kernels for a GPU are compiled through NVIDIA's Python bindings; without them it is slower, too.
CUDA := $(if $(shell command -v nvidia-smi),[cuda])
NODE_MODULES := tests/test_page/node_modules
export PYTHONUNBUFFERED = 1

# Options of `world-model serve`, e.g. make serve ARGS="--port 9000"
ARGS ?=
# Options of the comparison with other servers, e.g. make bench BENCH="--short"
BENCH ?=
# Working folders of `make train`, and the size and seed of its data set: those of `world-model
# collect` by default. The bundled model's data are of seed 1: with another one, both models can be
# judged by the same episodes.
DATA ?= data/train
RUN ?= runs/train
OUT ?= runs/checkpoint
TRANSITIONS ?=
SEED ?=
# Time for mutation testing, and which groups of modules; all of them by default.
MINUTES ?= 20
GROUPS ?=

.PHONY: help serve test page-packages lint train bench mutants format clean

help:
	@echo "make serve   install what is missing, serve the bundled model on 127.0.0.1:8000"
	@echo "make test    install what is missing, run all checks"
	@echo "make train   collect data, train and evaluate a model into $(OUT)"
	@echo "make bench   measure beside other servers into docs/benchmarks.md (hours; BENCH=--short)"
	@echo "make mutants change the code in small steps and list what no test notices; docs/testing.md"
	@echo "make format  format the code"
	@echo "make clean   remove what make has made, except data and runs"

serve: $(VENV)/.serve
	@echo "==> Serving the model"
	@exec $(BIN)/world-model serve $(ARGS)

test: $(VENV)/.all page-packages
	@echo "==> Checking style (ruff)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> Checking types (mypy)"
	@$(BIN)/mypy
	@echo "==> Checking the arrows between rooms (import-linter)"
	@$(BIN)/lint-imports
	@echo "==> Running the tests (pytest)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

# Tests of the page at / need packages of npm, and Chromium; what is missing is named and skipped.
page-packages:
	@command -v chromium >/dev/null || echo "==> Skipping the page's tests in a browser: there is no chromium"
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE_MODULES); \
	else echo "==> Skipping the page's types and accessibility: there is no npm"; fi

$(NODE_MODULES): tests/test_page/package.json tests/test_page/package-lock.json
	@echo "==> Installing what tests of the page need (npm)"
	@cd tests/test_page && npm ci --silent --no-audit --no-fund && touch node_modules \
	|| echo "==> Skipping the page's types and accessibility: npm could not install their packages"

train: $(VENV)/.all
	@echo "==> Collecting episodes into $(DATA)"
	@$(BIN)/world-model collect $(DATA) $(addprefix --transitions ,$(TRANSITIONS)) $(addprefix --seed ,$(SEED))
	@echo "==> Training into $(OUT)"
	@$(BIN)/world-model train $(DATA) --run $(RUN) --out $(OUT)
	@echo "==> Evaluating $(OUT)"
	@$(BIN)/world-model evaluate $(OUT) $(DATA) --report $(OUT)/report --examples $(OUT)/episodes \
		--update-checkpoint
	@echo "==> Done: serve it with 'make serve ARGS=\"--checkpoint $(OUT)\"'"

bench: $(VENV)/.all
	@echo "==> How to compute the members of an ensemble"
	@$(BIN)/python -m benchmarks.ensemble
	@echo "==> The engine on a GPU"
	@$(BIN)/python -m benchmarks.gpu
	@echo "==> The service beside other servers; see docs/benchmarks.md"
	@$(BIN)/python -m benchmarks.serving $(BENCH)

mutants: $(VENV)/.all
	@echo "==> Mutation testing for at most $(MINUTES) minutes; another run goes on from there"
	@$(BIN)/python -m tools.mutants --minutes $(MINUTES) $(GROUPS)

format: $(VENV)/.all
	@echo "==> Formatting"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@echo "==> Removing the environment and caches"
	@rm -rf $(VENV) $(NODE_MODULES) .bench .mutants .page dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "==> Creating the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> Installing the service (a few minutes the first time)"
	@$(INSTALL) -e '.$(CUDA)'
	@$(PREPARE)
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> Installing the service with training and development tools"
	@$(INSTALL) -e '.[training,tracks,otel,ray,rerun,dev]'
	@$(PREPARE)
	@touch $@ $(VENV)/.serve
