# Everything runs in .venv, made from whatever Python 3.11 or newer is at hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# torch's CPU build is a tenth of the default one's size; TORCH_INDEX= (empty) takes pip's default.
TORCH_INDEX ?=

.PHONY: demo serve test gpu-test lint format clean

demo: $(VENV)/.installed
	$(BIN)/verandah demo

serve: $(VENV)/.installed
	$(BIN)/verandah serve

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not gpu"

gpu-test:
	python3 -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info build .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit("Verandah needs Python 3.11 or newer; this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --progress-bar on -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --progress-bar on -e '.[dev]'
	touch $@
