# Everything runs in .venv, made from whatever Python 3.11 or newer is at hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# pip's own torch brings gigabytes of CUDA. Without a GPU, a tenth of that will do:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := torch>=2.11,<2.14

# Where Python may keep no bytecode, each of dozens of programs that the tests start would compile
# torch anew: that alone takes minutes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve test gpu-test lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/verandah demo

serve: $(VENV)/.installed
	$(BIN)/verandah serve

# Types are checked beside the tests: one by one, the two would leave cores idle.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy > $(VENV)/mypy.txt & mypy=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu" -n auto --dist worksteal; tests=$$?; \
	wait $$mypy; types=$$?; cat $(VENV)/mypy.txt; exit $$((tests + types))

gpu-test:
	python3 -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# `python -m` puts this folder on the path, where the site's hooks are.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) *.egg-info build site .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit("Verandah needs Python 3.11 or newer; this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) '$(TORCH)')
	$(BIN)/pip install --progress-bar on -e .
	touch $@

# Compiling all of torch and transformers ahead takes longer than what the tests import of them.
$(VENV)/.installed-dev: $(VENV)/bin/pip pyproject.toml
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) '$(TORCH)')
	$(BIN)/pip install --no-compile --progress-bar on -e '.[dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/bin/pip pyproject.toml
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) '$(TORCH)')
	$(BIN)/pip install --progress-bar on -e '.[docs]'
	touch $(VENV)/.installed $@
