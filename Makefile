# What there is to do with a checkout; needs Python 3.11 or newer and nothing else.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TESTS ?= tests
# Tests at the same time; with 2 it takes half of the time, on a machine with cores to spare.
JOBS ?=
UNIT_TESTS := $(patsubst tests/%.py,tests.%,$(sort $(wildcard tests/test_*.py)))
TRIAL = -m twisted.trial $(JOBS:%=--jobs=%) --temp-directory=build/trial
CONFIG ?= $(wildcard tap.conf)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

DIAGRAMS := $(patsubst %.dot,%.svg,$(wildcard docs/diagrams/*.dot))

.PHONY: help demo run test check matrix bench diagrams wheel clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    see the whole way, from indicator to sighting, on real data'
	@echo 'make run     plugin and bridge in the foreground, until Ctrl-C; uses tap.conf if there is one'
	@echo 'make test    run the tests; TESTS=tests.test_settings for some of them'
	@echo 'make check   lint, format, types, docstrings, and which package imports which'
	@echo 'make matrix  run the unit tests on every Python found, and on the oldest dependencies'
	@echo 'make bench   measure, in small, beside the peers'
	@echo 'make diagrams  draw docs/diagrams/*.dot again, with Graphviz'
	@echo 'make wheel   build a wheel in dist/'
	@echo 'make clean   remove everything that was made'
	@echo 'PYTHON=...   the interpreter to make $(VENV) with'

# Installed again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[engine,test]'
	@touch $@

$(BIN)/python:
	@found=; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		found=$$python; \
		$$python -c 'import ensurepip, venv' 2>/dev/null && exec $$python -m venv $(VENV); \
	done; \
	if [ "$$found" ]; then \
		echo "$$found cannot make a virtual environment: apt install python3-venv" >&2; \
	else \
		echo 'no Python 3.11 or newer found: install one, or name it with PYTHON=...' >&2; \
	fi; \
	exit 1

demo: $(INSTALLED)
	@$(BIN)/python -m devtools.demo

# Whatever ends first, a service or the wait for a signal, both are ended.
run: $(INSTALLED)
	@end() { kill $$plugin $$bridge 2>/dev/null; wait; exit $$1; }; \
	trap 'end 0' INT TERM HUP; \
	$(BIN)/twistd -n tbvast-plugin $(CONFIG:%=--config %) & plugin=$$!; \
	$(BIN)/twistd -n tbvast-bridge $(CONFIG:%=--config %) & bridge=$$!; \
	wait -n; end $$?

# CI measures the unit tests, and runs them once more with the oldest dependencies.
test: $(if $(CI),check) $(INSTALLED)
	@mkdir -p build
ifneq (,$(and $(CI),$(filter tests,$(TESTS))))
	@status=0; set -x; \
	$(BIN)/coverage erase; \
	$(BIN)/coverage run $(TRIAL) $(UNIT_TESTS) || status=1; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report || status=1; \
	$(BIN)/python $(TRIAL) tests.functional || status=1; \
	$(BIN)/python -m devtools.matrix --oldest $(JOBS:%=--jobs=%) || status=1; \
	exit $$status
else
	$(BIN)/python $(TRIAL) $(TESTS)
endif

check: $(INSTALLED) build/api/index.html
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tbvast tests bench devtools
	$(BIN)/lint-imports --no-logo

# It takes half a minute, so only if a docstring can have changed.
build/api/index.html: $(INSTALLED) devtools/api_docs.py $(shell find tbvast -name '*.py')
	$(BIN)/pydoctor

# It has environments of its own.
matrix: $(INSTALLED)
	$(BIN)/python -m devtools.matrix $(JOBS:%=--jobs=%)

bench: $(INSTALLED)
	$(BIN)/python -m bench --short

# The drawings are committed: only those whose source has changed are drawn.
diagrams: $(DIAGRAMS)

docs/diagrams/%.svg: docs/diagrams/%.dot
	@command -v dot >/dev/null || { echo 'no dot found: apt install graphviz' >&2; exit 1; }
	dot -Tsvg -o $@ $<

wheel: $(INSTALLED)
	rm -rf build/lib
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
