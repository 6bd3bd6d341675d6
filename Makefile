# Needs python3 (3.11 or newer) with venv, and make. Everything else comes from the locked requirements into .venv;
# the tests also use a browser and a Redis server, where the machine has them or can be given them (.ci/machine).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PIP_TOOLS := pip-tools==7.6.2
PURE := tests/core tests/wire tests/adapters

.PHONY: help demo test kills wall test-real check bench bench-streams bench-disconnects bench-outage bench-overshoot bench-held lock clean
.DEFAULT_GOAL := help

help: ## Show this.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.demo ## See it work: a gateway, simulated providers, the official client. Needs no account anywhere. KEEP=1 leaves the page open.
	$(BIN)/lockgate demo $(if $(KEEP),--keep)

test: $(VENV)/.dev ## Run the tests; those of core, wire and adapters must cover every branch of them.
	@.ci/machine
	$(BIN)/coverage erase
	status=0; \
	$(BIN)/pytest -n 2 -rs -m "not real" --cov --cov-branch --cov-report= $(PURE) || status=1; \
	$(BIN)/coverage report --fail-under=100 || status=1; \
	$(BIN)/pytest -n 2 -rs -m "not real" $(PURE:%=--ignore=%) || status=1; \
	exit $$status

kills: $(VENV)/.dev ## Kill gateways while calls wait for people, a thousand times, or KILLS=10000 (0.6 s each, on 2 cores).
	LOCKGATE_KILLS=$(or $(KILLS),1000) $(BIN)/pytest -s tests/crash

wall: $(VENV)/.dev ## See what becomes of calls when providers misbehave: every scenario, whole and streamed, as a table.
	$(BIN)/pytest -n 2 tests/wall --wall-table

test-real: $(VENV)/.real ## Run the tests against a real model on the processor (130 MB to download, once).
	$(BIN)/pytest -rs -m real tests/real

check: $(VENV)/.dev ## Lint, types, import contracts.
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

bench: $(VENV)/.dev ## Measure CPU per call and latency beside nginx (needs nginx and wrk); ARGS=--json.
	$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-streams bench-disconnects bench-outage bench-overshoot bench-held: $(VENV)/.dev ## Load programs, see benchmarks/README.md; ARGS=--help.
	$(BIN)/python benchmarks/$(@:bench-%=%).py $(ARGS)

lock: ## Resolve the requirements anew, with hashes; from the public index, whatever this machine is set to.
	$(PYTHON) -m venv .make/lock
	.make/lock/bin/pip install --quiet $(PIP_TOOLS)
	$(COMPILE) requirements.txt $(WITH_BUILD) --extra otlp pyproject.toml
	$(COMPILE) requirements-demo.txt $(WITH_BUILD) --extra otlp --extra demo --constraint requirements.txt pyproject.toml
	$(COMPILE) requirements-dev.txt requirements-dev.in

# pip is named because a package depends on it, and with hashes every package must be pinned: hence --allow-unsafe.
COMPILE = PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= CUSTOM_COMPILE_COMMAND="make lock" \
	.make/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --output-file
WITH_BUILD := --build-deps-for editable

clean: ## Remove what make and the tools made.
	rm -rf $(VENV) .make build dist .coverage .coverage.* .grimp_cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "python3 needs its venv module: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# The stamps hold until a lock file changes. The development set has the demo's in it.
$(VENV)/.demo: requirements-demo.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) install --require-hashes --requirement requirements-demo.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.real: requirements-real.txt $(VENV)/.dev
	$(PIP) install --no-deps --require-hashes --requirement $<
	touch $@

$(VENV)/.dev: requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) install --require-hashes --requirement requirements-dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/.demo
