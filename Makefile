# Everything runs in .venv, which any target makes on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER := 0
export ORT_DISABLE_TELEMETRY := 1
# Hundreds of short processes of the tests would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A file is run by one process: its fixtures, and what its tests have loaded, are made once.
BOTH_CORES := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(BOTH_CORES)

.PHONY: setup lock sbom demo test quick test-all coverage docs check bench clean mutants

setup: .venv/ready

# Everything is installed by hash, without resolving anything, but torch: which file it is depends
# on the machine (CPU or CUDA), so that it is pinned by its version alone.
.venv/ready: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --no-deps -r requirements.lock
	$(INSTALL) -c constraints.txt "torch==2.13.0"
	$(INSTALL) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch $@

lock:
	$(BIN)/python -m uv pip compile pyproject.toml requirements.in --all-extras --universal \
		--python-version 3.11.5 --generate-hashes -c constraints.txt --no-annotate --no-header \
		--quiet -o requirements.lock

sbom: setup
	$(BIN)/python deploy/sbom.py requirements.lock > sbom.json

demo: setup
	$(BIN)/tacit-simulate digits

test: setup
	$(PYTEST)

quick: setup
	$(PYTEST) -m "unit and not slow and not long" --hypothesis-profile=dev

test-all: setup
	$(PYTEST) -m "slow or not slow" --hypothesis-profile=full

coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(BOTH_CORES) --timeout=1800
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage json --quiet -o coverage.json
	$(BIN)/python -m coverage report --fail-under=88
	$(BIN)/python tests/support/coverage_floor.py coverage.json 60

docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# Mutates what every reader of foreign data reads; with GUIDED=--coverage by coverage (atheris).
SECONDS ?= 120
GUIDED ?=
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(GUIDED)

bench: setup
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis site sbom.json coverage.json .coverage*

# Changes that break a promise must fail a test; --random N tries others beside them.
mutants: setup
	$(BIN)/python -m tests.mutants.run $(MUTANTS)
