# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

# What users install, and the demo on top of it.
demo: .venv/demo.stamp
	$(BIN)/grpo-jax train demo

# Everything, oracles (torch, TRL) included. A process that dies ends it, where xdist would wait for another one.
test: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch .ci/run

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/pip pyproject.toml
	$(BIN)/pip install -q -e .
	touch $@

.venv/test.stamp: .venv/bin/pip pyproject.toml
	$(BIN)/pip install -q -e '.[test]'
	touch $@ .venv/demo.stamp

clean:
	rm -rf .venv .cache
