# Every target works in .venv, which one stamp rule creates and keeps up to date.
# Paths are relative, so that the folder's own path may contain spaces.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST_ARGS ?=
TESTS ?= not long

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-long test-faults fuzz lint types contracts format lock audit bench wheel venv clean debian-data

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) debian-data ## specialise a network for this machine, the whole chain
	$(BIN)/deploynas demo --download

test: $(STAMP) ## run the tests (PYTEST_ARGS="-k name" to choose)
	@$(BIN)/python -m pytest -m "$(TESTS)" $(PYTEST_ARGS); status=$$?; \
	if [ $$status -eq 5 ]; then echo "make test: pytest found no test to run" >&2; fi; \
	exit $$status

test-fast: $(STAMP) ## those that take a moment each: for the inner loop
	@$(MAKE) --no-print-directory test TESTS="not slow and not long"

test-long: $(STAMP) ## those that are not in `make test`: the wheel, torchrun, killed searches
	@$(MAKE) --no-print-directory test TESTS=long

test-faults: $(STAMP) ## every long verb killed, on full disks, two at once (hours)
	DEPLOYNAS_KILLS=20 $(BIN)/python -m pytest -q -s tests/workflows/test_killed.py $(PYTEST_ARGS)

FUZZ_INPUTS ?= 50000
fuzz: $(STAMP) ## FUZZ_INPUTS damaged files, given to all that reads files, with counts
	$(BIN)/python benchmarks/fuzz.py --inputs $(FUZZ_INPUTS)

lint: $(STAMP) ## style: ruff's rules and its format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/vermin -t=3.9- --no-tips --quiet deploynas/onboard deploynas/runtimes/*.py deploynas/errors.py

types: $(STAMP) ## mypy --strict on the package
	$(BIN)/python -m mypy

contracts: $(STAMP) ## the direction of imports
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

lock: ## write requirements.lock, the hashes of what constraints.txt pins (needs uv)
	{ head -1 requirements.lock; uv pip compile pyproject.toml --extra search --extra dev \
	  -c constraints.txt --generate-hashes --universal --python-version 3.11 --no-header \
	  --no-annotate --quiet; } > requirements.lock.new && mv requirements.lock.new requirements.lock

audit: ## known vulnerabilities of what is pinned (needs pip-audit and the network)
	pip-audit -r requirements.lock --require-hashes --disable-pip --strict

bench: $(STAMP) ## list the benchmarks; run one with .venv/bin/python benchmarks/NAME.py
	@ls benchmarks

wheel: $(STAMP) ## build dist/deploynas-VERSION-py3-none-any.whl
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

venv: $(STAMP) ## create .venv and install everything into it

clean: ## remove .venv, caches and build output (profiles, runs and exports stay)
	rm -rf .venv build dist deploynas.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find deploynas tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# CI takes only files whose hashes stand in requirements.lock.
PIP := $(BIN)/python -m pip install --disable-pip-version-check
ifeq ($(CI),true)
INSTALL := $(PIP) --require-hashes -r requirements.lock && \
  $(PIP) --no-deps --no-build-isolation -e .
else
INSTALL := $(PIP) -c constraints.txt -e ".[search,dev]"
endif

$(STAMP): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: Python 3.11 or newer is needed, and '$(PYTHON)' is not; say which with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot create virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv; on Linux this downloads a few GB, most of them PyTorch's."
	$(INSTALL)
	@touch $(STAMP)

# Fashion-MNIST as Debian packages it, where that needs no question. Where it does not work,
# `demo --download` finds the images elsewhere: this rule never fails.
debian-data:
	@if [ -d /usr/share/datasets/fashion-mnist ] || ! command -v apt-get >/dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ]; then sudo=; \
	elif sudo -n true >/dev/null 2>&1; then sudo="sudo -n"; \
	else exit 0; fi; \
	echo "Asking Debian's packages for dataset-fashion-mnist ..."; \
	apt() { $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -yq -o Acquire::http::Timeout=30 \
	  -o DPkg::Lock::Timeout=30 "$$@" </dev/null >/dev/null 2>&1; }; \
	apt install --no-install-recommends dataset-fashion-mnist \
	|| { apt update && apt install --no-install-recommends dataset-fashion-mnist; } \
	|| echo "... not available here; going on without it."
