# `make repro` and `make test` need Python 3.11, git and make; everything else they install into .venv.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro study test team-test ui-test flow down doctor bench docs format ui lock clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

repro: $(BIN)/.installed ## run the pipeline: data, training, evaluation, registration
	$(BIN)/dvc repro

study: $(BIN)/.installed ## every variant over three seeds: the table and figures of study/results
	printf '%s\n' 0 1 2 | OMP_NUM_THREADS=1 xargs -P 3 -I SEED $(BIN)/dvc --wait-for-lock repro study/dvc.yaml:evaluate@SEED
	$(BIN)/dvc repro study/dvc.yaml

test: $(BIN)/.installed ## lint, types, import contract, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder # one thread each: the two share the cores

doctor: $(BIN)/.installed ## what the chosen profile lacks here, and the command that gets it
	$(BIN)/gain doctor

bench: $(BIN)/.installed ## what guidance costs beside the peers; loading, start-up, scaling, the pipeline, Prefect, tracking, serving
	$(BIN)/python -m benchmarks.guidance
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.repro
	$(BIN)/python -m benchmarks.flows
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.serving

docs: $(BIN)/.installed ## tables and pictures of README and docs/, from the last `make repro` and `make study`
	$(BIN)/python -m docs.build

format: $(BIN)/.installed ## format the code and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

team-test: $(BIN)/.installed ## Prefect and MLflow on PostgreSQL, two workers, one remote (needs Debian's postgresql)
	$(BIN)/pytest tests/team

flow: $(BIN)/.installed ## the pipeline through Prefect: server, worker, deployment train/local, watched
	$(BIN)/gain flow

down: $(BIN)/.installed ## stop the server and the workers that `make flow` started
	$(BIN)/gain down

ui: $(BIN)/.installed ## the runs in MLflow's UI on http://127.0.0.1:5000
	$(BIN)/gain ui

ui-test: $(BIN)/.installed ## the runs in MLflow's UI, looked at with a browser (needs Debian's chromium)
	$(BIN)/pytest tests/browser

lock: $(BIN)/.installed ## resolve requirements.lock anew (needs uv)
	uv pip compile --universal --generate-hashes --python-version 3.11 --group dev \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean: ## remove what the pipeline made, keep the DVC cache and the environment
	rm -rf data models checkpoints reports/* study/seed* .tracking .runs mlflow.db mlruns

$(BIN)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@
