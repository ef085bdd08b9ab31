# Needs Python 3.11, 3.12 or 3.13, git and make; everything else goes into .venv. `make PYTHON=/path/to/python` chooses one;
# 3.11 comes first since the committed results were made with it.
BIN := .venv/bin
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for name in $(BIN)/python python3.11 python3.12 python3.13 python3; do \
	$$name -c '$(SUPPORTED)' 2> /dev/null && echo $$name && break; done)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro study photos-study check test lint units all-tests team-test fault-test ui-test k8s-check gpu-check flow down doctor bench docs format ui lock clean git-repository
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

repro: $(BIN)/.installed ## run the pipeline: data, training, evaluation, registration
	$(BIN)/dvc repro
	$(BIN)/gain register --verify

study: $(BIN)/.installed ## every variant over three seeds: the table and figures of study/results
	printf '%s\n' 0 1 2 | OMP_NUM_THREADS=1 xargs -P 3 -I SEED $(BIN)/dvc --cd study --wait-for-lock repro evaluate@SEED
	$(BIN)/dvc --cd study repro

# photos-study/study.yaml names the profile, as the lock must say with which weights its results were made.
photos-study: $(BIN)/.installed ## the same on photographs: DATA=folder or archive in VOC layout, WEIGHTS=VGG16 with Caffe's names (else ImageNet's)
	@test -e "$(DATA)" || { echo "make: error: DATA=$(DATA): no such folder or archive; say make photos-study DATA=/path/of/photographs" >&2; exit 1; }
	@test -z "$(WEIGHTS)" -o -f "$(WEIGHTS)" || { echo "make: error: WEIGHTS=$(WEIGHTS): no such file; correct the path, or leave it out" >&2; exit 1; }
	ln -sfn "$$(realpath "$(DATA)")" photos-study/photographs
	$(if $(WEIGHTS),ln -sfn "$$(realpath "$(WEIGHTS)")" photos-study/weights)
	sed -i.before 's/^  profile: .*/  profile: photos-study$(if $(WEIGHTS),,-imagenet)/' photos-study/study.yaml
	rm photos-study/study.yaml.before
	$(BIN)/dvc --cd photos-study repro

check: $(BIN)/.installed ## lint, types, import contract, tests that start no process: what to run before a commit
	@$(MAKE) --no-print-directory --jobs 2 lint units

test: $(BIN)/.installed ## the same with all tests: what CI runs
	@$(MAKE) --no-print-directory --jobs 2 lint all-tests

lint: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread each, since the two share the cores.
units: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not system" --numprocesses 2 --dist worksteal

all-tests: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

doctor: $(BIN)/.installed ## what the chosen profile lacks here, and the command that gets it
	$(BIN)/gain doctor

bench: $(BIN)/.installed ## what guidance costs beside the peers; loading, start-up, scaling, the pipeline, Prefect, tracking, serving; definitions
	$(BIN)/python -m benchmarks.guidance
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.repro
	$(BIN)/python -m benchmarks.flows
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.definitions

docs: $(BIN)/.installed ## tables and pictures of README and docs/, from the last `make repro` and `make study`
	$(BIN)/python -m docs.build

format: $(BIN)/.installed ## format the code and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

team-test: $(BIN)/.installed ## Prefect and MLflow on PostgreSQL, two workers, one remote (needs Debian's postgresql)
	$(BIN)/pytest tests/team

fault-test: $(BIN)/.installed ## what docs/faults.md says: random kills, full disks, dead servers (an hour; needs util-linux)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults tests/flows tests/training/test_ranks.py tests/tracking/test_failing_server.py

flow: $(BIN)/.installed ## the pipeline through Prefect: server, worker, deployment train/local, watched
	$(BIN)/gain flow

down: $(BIN)/.installed ## stop the server and the workers that `make flow` started
	$(BIN)/gain down

ui: $(BIN)/.installed ## the runs in MLflow's UI on http://127.0.0.1:5000
	$(BIN)/gain ui

ui-test: $(BIN)/.installed ## MLflow's views, the page of an evaluation and gain demo in a browser (needs Debian's chromium)
	$(BIN)/pytest tests/browser

# In an environment of its own: beside the locked packages, prefect-kubernetes changes what Prefect's server needs.
k8s-check: ## whether Prefect and Kubernetes take deploy/kubernetes-job.json (installs prefect-kubernetes into .k8s)
	test -x .k8s/bin/prefect || $(PYTHON) -m venv .k8s
	.k8s/bin/pip install --quiet prefect==3.8.8 prefect-kubernetes 'fastapi<0.151'
	PREFECT_LOGGING_LEVEL=ERROR PREFECT_SERVER_ANALYTICS_ENABLED=false .k8s/bin/python deploy/check_kubernetes.py

# A machine with a GPU need not have the environment of the project: torch and what the stages compute with are enough.
gpu-check: ## on a machine with a GPU: its tests, the stages of profile smoke, the benchmarks; writes benchmarks/*-cuda.json
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) -m benchmarks.gpu_check

lock: $(BIN)/.installed ## resolve requirements.lock again, for Python 3.11 to 3.13 (needs uv)
	uv pip compile --universal --generate-hashes --python-version 3.11 --group dev \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

# reports/configure is in Git, links included.
clean: ## remove what the pipeline made; keep MLflow's records, the DVC cache and the environment
	@for path in $(wildcard data models checkpoints study/seed* photos-study/seed* .runs) \
		$(filter-out reports/configure,$(wildcard reports/*)); do rm -rf "$$path" && echo "clean: removed $$path"; done
	@echo "clean: kept mlflow.db, mlruns and .tracking, which cannot be made again; delete them by hand if you mean to"

git-repository:
	@command -v git > /dev/null || { echo "make: error: git is missing; install it" >&2; exit 1; }
	@test -e .git && git rev-parse --quiet --verify HEAD > /dev/null || { echo "make: error: no Git repository with a commit," \
		"which DVC needs; clone the project, or type: git init && git add . && git commit -m Begin" >&2; exit 1; }

$(BIN)/.installed: requirements.lock pyproject.toml | git-repository
	@$(if $(PYTHON),$(PYTHON) -c '$(SUPPORTED)' 2> /dev/null,false) || { echo "make: error: Python 3.11, 3.12 or 3.13 with venv is needed;" \
		"install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@
