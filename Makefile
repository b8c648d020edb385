# Everything runs in .venv, which any target makes on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER := 0

BOTH_CORES := -n 2 --dist loadgroup
PYTEST := $(BIN)/python -m pytest $(BOTH_CORES)

.PHONY: setup demo test quick test-all check bench clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray]"
	touch $@

demo: setup
	$(BIN)/tacit-simulate digits

test: setup
	$(PYTEST)

quick: setup
	$(PYTEST) -m "unit and not slow" --hypothesis-profile=dev

test-all: setup
	$(PYTEST) -m "slow or not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: setup
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
