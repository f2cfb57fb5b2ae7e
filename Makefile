# `make demo`, `make test` and `make lint` set everything up by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A browser for the tests of HTML pages: taken from Debian where that is possible, else those skip.
BROWSER := command -v chromium >/dev/null && command -v chromedriver >/dev/null

.PHONY: help demo install browser test test-fast lint benchmark clean

help:
	@echo "make demo       set up, score the sample images with the bundled model"
	@echo "make test       set up, check the style and run all tests"
	@echo "make test-fast  set up and run the fast tests"
	@echo "make lint       set up, ruff and mypy"
	@echo "make benchmark  set up and measure this machine"
	@echo "make clean      remove the environment and caches"

demo: install
	$(BIN)/spai infer --input data/samples --model mini --output output/demo --report --attention-maps
	@echo
	@cut -d, -f1,2 output/demo/samples.csv
	@echo
	@echo "scores: $(CURDIR)/output/demo/samples.csv"
	@echo "page:   $(CURDIR)/output/demo/samples.html (open it in a browser)"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "spai needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

browser:
	@$(BROWSER) || { [ "$$(id -u)" = 0 ] && command -v apt-get \
		&& export DEBIAN_FRONTEND=noninteractive && timeout 300 apt-get update \
		&& timeout 600 apt-get install --yes --no-install-recommends chromium chromium-driver; \
		} >/dev/null 2>&1 </dev/null || true
	@$(BROWSER) || echo "no chromium and chromedriver here: tests in a browser will be skipped"

# A process for each part: some tests fork, which native threads of others do not survive.
PARTS := tests/backends $(wildcard tests/cli/test_*.py tests/engine/test_*.py) tests/data \
	tests/detectors tests/models tests/report tests/scripts $(wildcard tests/test_*.py) spai

test: lint browser
	@for part in $(PARTS); do \
		echo "== $$part"; $(BIN)/python -m pytest -q $$part || exit 1; \
	done

test-fast: install browser
	$(BIN)/python -m pytest -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: install
	$(BIN)/python scripts/benchmark.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
