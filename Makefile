# make quickstart   a virtual environment, the pinned packages, then five minutes of distillation
# make test         lint, types and the fast tests; make test-slow adds the long ones
# make soak         a hundred runs killed at random moments, each continued to the same bits (RUNS=, SEED=)
# make test-slurm   slurm/ on a real Slurm of two nodes on this machine (Debian: slurmctld slurmd slurm-client munge)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.made-from-lock

.PHONY: quickstart venv test test-slow test-slurm soak tests lint results bench clean

quickstart: $(MARK)
	$(BIN)/kdscale quickstart

venv: $(MARK)

# The environment is made from nothing when it is missing or the lock file has changed.
$(MARK): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tests: $(MARK)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test: lint tests

test-slow: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slurm"

test-slurm: $(MARK)
	$(BIN)/python -m pytest -m slurm tests/slurm --durations=0

RUNS ?= 100
soak: $(MARK)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --runs $(RUNS) $(if $(SEED),--seed $(SEED))

# The README's table, from the rows of finished runs.
PAIR := cifar100/wrn_40_2_wrn_16_2
results: $(MARK)
	$(BIN)/kdscale results --of $(PAIR):alone --of $(PAIR):kd --of $(PAIR):crd --of $(PAIR):shake --of $(PAIR):sftn_kd \
	  --of cifar100/resnet56_resnet20:kd --of cifar100/resnet56_resnet20:shake --of cifar100/stage_by_stage_tables:table2-4-stages \
	  --readme README.md

bench: $(MARK)
	$(BIN)/kdscale bench step quickstart:alone data.source=runs/quickstart/shards
