# Needs Python >= 3.11 with pip, and make. Everything lands in .venv; a second call starts at once.

PYTHON    ?= python3
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
CHAOS_ARGS ?=

VENV   := .venv
BIN    := $(VENV)/bin
SOURCE := $(wildcard skeino skeino_asgi tests examples benchmarks)

.DELETE_ON_ERROR:
.PHONY: help demo test check conformance matrices bench chaos clean

help:
	@echo "make demo    serve the demonstration application (DEMO_ARGS=...)"
	@echo "make test    run the tests (TEST_ARGS=...)"
	@echo "make check   ruff, mypy and pyright over code, tests and examples"
	@echo "make conformance   run LangGraph's test-suite on every saver and write docs/conformance.md"
	@echo "make matrices      write the tables of docs/frameworks.md and docs/endings.md"
	@echo "make bench   measure what it costs, beside other ways (BENCH_ARGS=...)"
	@echo "make chaos   kill, hinder and fuzz it, at length (CHAOS_ARGS=... for all harnesses)"
	@echo "make clean   remove .venv, caches and build products"
	@echo "Another interpreter: make test PYTHON=python3.12"

demo: $(VENV)/.demo-installed
	@$(BIN)/python -m skeino_asgi demo $(DEMO_ARGS)

test: $(VENV)/.test-installed
	@$(BIN)/python -m pytest $(TEST_ARGS)

check: $(VENV)/.test-installed
	$(BIN)/ruff check $(SOURCE)
	$(BIN)/ruff format --check $(SOURCE)
	$(BIN)/mypy $(SOURCE)
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python tests/typing examples

conformance: $(VENV)/.test-installed
	@$(BIN)/python -m tests.savers.conformance_table

matrices: $(VENV)/.test-installed
	@$(BIN)/python -m tests.frameworks
	@$(BIN)/python -m tests.endings

bench: $(VENV)/.test-installed
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

chaos: $(VENV)/.test-installed
	@status=0; for harness in $$($(BIN)/python -m tests.chaos --names); do \
		$(BIN)/python -m tests.chaos $$harness $(CHAOS_ARGS) || status=1; \
	done; exit $$status

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo-installed: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing skeino-asgi with its demo into $(VENV) (under a minute) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[all]'
	@touch $@

# The test tools include all that the demo needs.
$(VENV)/.test-installed: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing skeino-asgi with its test tools into $(VENV) (about a minute) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	@touch $(VENV)/.demo-installed $@

$(VENV)/pyvenv.cfg:
	@problem=$$("$(PYTHON)" -c "$$FIND_PROBLEM" 2>/dev/null || echo "$(CANNOT_RUN)"); \
	if [ -n "$$problem" ]; then echo "$$problem" >&2; exit 1; fi
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

CANNOT_RUN = '$(PYTHON)' cannot be run: install Python 3.11 or newer, or name one, as in 'make test PYTHON=python3.12'.

# Prints nothing where $(PYTHON) will do, else one sentence. Written for any Python, even one far too old.
define FIND_PROBLEM
import sys
version = "%d.%d" % sys.version_info[:2]
try:
    import ensurepip, venv
    complete = True
except ImportError:
    complete = False
if sys.version_info < (3, 11):
    print("skeino-asgi needs Python 3.11 or newer and '$(PYTHON)' is Python " + version
          + ": name a newer one, as in 'make test PYTHON=python3.12'.")
elif not complete:
    print("'$(PYTHON)' (Python " + version + ") comes without its venv module: install it (Debian and Ubuntu: "
          + "'apt install python" + version + "-venv') or name another one, as in 'make test PYTHON=python3.12'.")
endef
export FIND_PROBLEM
