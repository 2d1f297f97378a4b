# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# pip would compile every module of every package (50 s); Python compiles those that are imported, once.
PIP := $(BIN)/pip install -q --no-compile
export PYTHONDONTWRITEBYTECODE =

# The rooms that compile little or nothing, without their slow files, and files of other rooms that are done in seconds.
FAST := test_rooms.py test_docs.py config data runs rewards \
  commands/test_requests.py commands/test_streaming.py demo/test_tiny_model.py \
  evaluation/test_answers.py evaluation/test_statistics.py evaluation/test_tasks.py \
  learner/test_advantages.py learner/test_losses.py models/test_hf_config.py models/test_rope.py \
  pipelines/test_steps.py rollout/test_stopping.py sandbox/test_run.py sharding/test_mesh_rules.py
SLOW := runs/test_checkpoints.py runs/test_loggers.py runs/test_old_run.py \
  rewards/test_async_rewards.py rewards/test_code_reward.py rewards/test_reward_pool.py

# Workers take whole files, the longest first (tests/conftest.py). A process that dies ends it, where xdist would wait for
# another one.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo test test-fast real-weights-test check clean

# What users install, and the demo on top of it.
demo: .venv/demo.stamp
	$(BIN)/grpo-jax train demo

# Everything, oracles (torch, TRL) included. The slowest cases are named at its end.
test: .venv/test.stamp
	$(PYTEST) --durations=40

# For the inner loop: under 3 minutes on two cores.
test-fast: .venv/test.stamp
	$(PYTEST) $(addprefix tests/,$(FAST)) $(addprefix --ignore=tests/,$(SLOW))

# Tests against published models: fetches 570 MB the first time, keeps 1.3 GB in the cache folder. Compiled as for users.
real-weights-test: .venv/test.stamp
	$(PIP) gguf
	$(BIN)/python benchmarks/real_weights.py
	TESTS_COMPILE_AS_USERS_DO=1 $(BIN)/python -m pytest -v -m real_weights --durations=0 tests/test_real_weights.py

check: .venv/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch .ci/run

# The pip that comes with Python 3.11 takes half a minute longer to choose among all versions.
.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip

.venv/demo.stamp: .venv/bin/pip pyproject.toml
	$(PIP) -e .
	touch $@

.venv/test.stamp: .venv/bin/pip pyproject.toml
	$(PIP) -e '.[test]'
	touch $@ .venv/demo.stamp

.venv/check.stamp: .venv/bin/pip pyproject.toml
	$(PIP) -e '.[test,check]'
	touch $@ .venv/test.stamp .venv/demo.stamp

clean:
	rm -rf .venv .cache
