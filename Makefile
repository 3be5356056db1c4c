# Everything a developer runs, from a clone and Python 3.11+ alone. `make` prints the list.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
# One test process per core, at most four: each starts a PostgreSQL of its own.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up demo test check check-format check-lint check-types check-proto check-generated \
        check-imports format generate lock matrix coverage-rows chaos bench bench-weight compile clean

help: ## Show this list
	@echo "Bursar: what you can run here. The first command sets up $(VENV) by itself."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "New here? Try 'make up' and do what it prints, or 'make demo' to watch it happen."
	@echo "Another Python than python3: make up PYTHON=python3.12"

# -- running ---------------------------------------------------------------------------------------

up: compile ## Start everything (database, control plane, sidecar) until Ctrl-C
	@$(BIN)/bursar up

demo: compile ## A guided walk that ends by itself: budget, calls, alert, 402, grant, statement
	@$(BIN)/bursar demo

# -- testing ---------------------------------------------------------------------------------------

test: compile ## Run the whole test suite
	@$(PYTEST)

KILLS ?= 300
chaos: compile ## Kill every part under load, again and again, then compare the books with what was served (15 to 20 minutes; KILLS=300 SEED=…)
	@PYTHONPATH=tests $(PY) -m chaos --kills $(KILLS) $(if $(SEED),--seed $(SEED))

check: check-format check-lint check-proto check-generated check-imports check-types ## All static checks: format, lint, protos, generated code, imports, types
	@echo "check: all is well"

check-format: $(VENV)/.ready
	@echo "check: format"
	@$(BIN)/ruff format --check --quiet --output-format concise . || { echo "Run 'make format' and look at the difference."; exit 1; }

check-lint: $(VENV)/.ready
	@echo "check: lint"
	@$(BIN)/ruff check --quiet --output-format concise .

check-proto: $(VENV)/.ready
	@echo "check: protos"
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code

check-generated: $(VENV)/.ready
	@echo "check: generated code"
	@$(PY) tools/generate.py --check

check-imports: $(VENV)/.ready
	@echo "check: who imports whom"
	@$(BIN)/lint-imports --no-cache >$(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log; exit 1; }

check-types: $(VENV)/.ready
	@echo "check: types"
	@$(BIN)/mypy --no-error-summary

# -- changing --------------------------------------------------------------------------------------

format: $(VENV)/.ready ## Format Python and protos, fix what the linter can fix
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write

generate: $(VENV)/.ready ## Write gen/ anew from proto/ (offline)
	@$(PY) tools/generate.py

lock: $(VENV)/.ready ## Resolve pyproject.toml anew into requirements.lock (needs a package index)
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock
	@git --no-pager diff --stat -- requirements.lock

# -- measuring -------------------------------------------------------------------------------------

matrix: compile ## Write the tables of docs/metering-matrix.md from what the sidecar does
	@BURSAR_WRITE_MATRIX=1 $(BIN)/pytest -q tests/e2e/test_sidecar_endings.py

coverage-rows: compile ## Run the tests and list which rows of docs/requirements.md and docs/semantics.md they prove
	@$(PY) tools/coverage_rows.py

bench: compile ## Measure speed, processor time and memory beside pgbench and a plain proxy (about 6 minutes)
	@$(PY) -m bench

bench-weight: compile ## Install the sidecar alone in a bare environment: what it weighs
	@$(PY) tools/bench_weight.py

clean: ## Remove caches and build products; .venv and .bursar stay
	@find services -name '*.so' -delete
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# -- setting up ------------------------------------------------------------------------------------

COMPILE ?= yes
compile: $(VENV)/.ready ## Compile what every metered call goes through, if it has changed (COMPILE=no: run it as it is)
	@$(PY) tools/compile.py $(if $(filter no,$(COMPILE)),--remove)

$(VENV)/.ready: $(VENV)/.packages pyproject.toml
	@echo "setup: Bursar itself, editable" >&2
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.packages: requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
	    echo "setup: there is no '$(PYTHON)' here. Bursar needs Python 3.11 or newer; name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "setup: $$($(PYTHON) -V 2>&1) is too old. Bursar needs 3.11 or newer; name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "setup: $(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "setup: $(VENV)" >&2; $(PYTHON) -m venv --clear $(VENV); }
	@echo "setup: $$(grep -c '^[a-z]' requirements.lock) pinned packages (the first time takes a minute or two)" >&2
	@$(PY) -m pip install --quiet --require-hashes --no-deps --requirement requirements.lock
	@touch $@
